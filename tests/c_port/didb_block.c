/*
 * One block of DIDB-ViT in float32, from a golden bundle: an example for porters.
 *
 *     didb_block BUNDLE BLOCK OUT_DIR        e.g.  didb_block weights/golden/small_tie_free 0 mine
 *
 * It reads the tap that enters block BLOCK ("tokens", or "blocks.<BLOCK-1>.out") and the latent
 * parameters, computes the block, and writes every value on the way into the folder OUT_DIR (which
 * must exist) as <tap>.npy, under the names of SPEC 8.1. Then
 *
 *     refimpl golden compare BUNDLE OUT_DIR --mode replay
 *
 * judges each operation by itself. Written from refimpl/SPEC.md alone; [SPEC 5] points there.
 * Errors are one line on stderr and exit status 2.
 *
 * C99, libc and libm only:   cc -std=c99 -O2 -ffp-contract=off didb_block.c -o didb_block -lm
 * (Contraction is off because a fused multiply-add in front of a sign may turn the sign [SPEC 1].)
 *
 * Where to look: 1 errors and memory   2 JSON   3 the bundle   4 taps out
 *                5 bits   6 real operations   7 attention   8 the block
 * The transformer is in 5 to 8; what comes before only reads and writes files.
 */
#include <ctype.h>
#include <errno.h>
#include <math.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ---- 1. Errors and memory ------------------------------------------------------------------- */

/* What a file says may be quoted in the message, which is one line all the same. */
static void die(const char *format, ...)
{
    char message[1000];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(message, sizeof message, format, arguments);
    va_end(arguments);
    for (char *c = message; *c != 0; c++)
        if (iscntrl((unsigned char)*c))
            *c = '?';
    fprintf(stderr, "didb_block: %s\n", message);
    exit(2);
}

/* a * b, or the end. Sizes come from files, so no product of them may wrap around. */
static size_t times(size_t a, size_t b)
{
    if (b != 0 && a > SIZE_MAX / b)
        die("a size of more than %lu bytes", (unsigned long)SIZE_MAX);
    return a * b;
}

/* Zeroed memory. The program computes one block and ends: nothing is given back before. */
static void *allocate(size_t count, size_t size)
{
    void *memory = calloc(count > 0 ? count : 1, size);
    if (memory == NULL)
        die("no memory for %lu values of %lu bytes", (unsigned long)count, (unsigned long)size);
    return memory;
}

static float *floats(size_t count)
{
    return allocate(count, sizeof(float));
}

/* left + middle + right as a new string. */
static char *join(const char *left, const char *middle, const char *right)
{
    char *text = allocate(strlen(left) + strlen(middle) + strlen(right) + 1, 1);
    strcat(strcat(strcpy(text, left), middle), right);
    return text;
}

/* The first `length` characters as a new string. */
static char *cut(const char *text, size_t length)
{
    char *copy = allocate(length + 1, 1);
    memcpy(copy, text, length);
    return copy;
}

typedef struct {
    const char *name; /* for messages */
    unsigned char *bytes;
    size_t size; /* a zero byte follows, so that text ends */
} File;

static File read_file(const char *folder, const char *name)
{
    File file = {join(folder, "/", name), NULL, 0};
    FILE *stream = fopen(file.name, "rb");
    if (stream == NULL)
        die("%s: %s", file.name, strerror(errno));
    size_t room = 1 << 16, count;
    file.bytes = allocate(room + 1, 1);
    while ((count = fread(file.bytes + file.size, 1, room - file.size, stream)) > 0) {
        file.size += count;
        if (file.size == room) {
            room = times(room, 2);
            file.bytes = realloc(file.bytes, room + 1);
            if (file.bytes == NULL)
                die("%s: no memory for it", file.name);
        }
    }
    if (ferror(stream))
        die("%s: cannot be read", file.name);
    fclose(stream);
    file.bytes[file.size] = 0;
    return file;
}

/* ---- 2. JSON: just enough for manifest.json and the header of a safetensors file ------------- */

static const char *where_json; /* the file that is being read, for messages */

static const char *skip_space(const char *p)
{
    return p + strspn(p, " \t\r\n");
}

static const char *expect(const char *p, char wanted)
{
    p = skip_space(p);
    if (*p != wanted)
        die("%s: malformed JSON; expected '%c'", where_json, wanted);
    return p + 1;
}

/* The character after the string that starts at p. Escapes are stepped over, not decoded. */
static const char *skip_string(const char *p)
{
    for (p = expect(p, '"'); *p != '"'; p++) {
        if (*p == '\\')
            p++;
        if (*p == 0)
            die("%s: malformed JSON; a string does not end", where_json);
    }
    return p + 1;
}

/* The character after the value at p. */
static const char *skip_value(const char *p, int depth)
{
    p = skip_space(p);
    if (depth > 100)
        die("%s: malformed JSON; nested too deeply", where_json);
    if (*p == '"')
        return skip_string(p);
    if (*p != '{' && *p != '[') {
        size_t length = strspn(p, "+-.0123456789abcdefghijklmnopqrstuvwxyzEIN");
        if (length == 0)
            die("%s: malformed JSON; expected a value", where_json);
        return p + length;
    }
    char closing = *p == '{' ? '}' : ']';
    p = skip_space(p + 1);
    if (*p == closing)
        return p + 1;
    for (;;) {
        if (closing == '}')
            p = expect(skip_string(p), ':');
        p = skip_space(skip_value(p, depth + 1));
        if (*p == closing)
            return p + 1;
        p = skip_space(expect(p, ','));
    }
}

/* Goes through an object: *p, which starts as the object, moves on; 0 when there are no more. */
static int next_member(const char **p, const char **key, const char **value)
{
    int first = **p == '{';
    *p = skip_space(*p + first);
    if (**p == '}')
        return 0;
    *key = first ? *p : skip_space(expect(*p, ','));
    *value = skip_space(expect(skip_string(*key), ':'));
    *p = skip_space(skip_value(*value, 0));
    return 1;
}

static int is_string(const char *value, const char *text)
{
    size_t length = strlen(text);
    return *value == '"' && strncmp(value + 1, text, length) == 0 && value[length + 1] == '"';
}

/* The value of `key` in an object, NULL where there is none. Twice is an error. */
static const char *find_member(const char *object, const char *key)
{
    const char *found = NULL, *name, *value;
    const char *p = expect(object, '{') - 1;
    while (next_member(&p, &name, &value)) {
        if (!is_string(name, key))
            continue;
        if (found != NULL)
            die("%s: \"%s\" stands there twice", where_json, key);
        found = value;
    }
    return found;
}

static const char *member(const char *object, const char *key)
{
    const char *value = find_member(object, key);
    if (value == NULL)
        die("%s: no \"%s\"", where_json, key);
    return value;
}

/* A whole number >= 0. */
static size_t whole(const char *value)
{
    value = skip_space(value);
    if (*value < '0' || *value > '9')
        die("%s: expected a whole number, found \"%.12s\"", where_json, value);
    errno = 0;
    unsigned long long number = strtoull(value, NULL, 10);
    if (errno != 0 || number > SIZE_MAX)
        die("%s: the number %.24s is too large", where_json, value);
    return (size_t)number;
}

/* Which of the words a string is: 0, 1 … */
static int choice(const char *object, const char *key, const char *first, const char *second)
{
    const char *value = member(object, key);
    if (!is_string(value, first) && !is_string(value, second))
        die("%s: \"%s\" is neither \"%s\" nor \"%s\"", where_json, key, first, second);
    return is_string(value, second);
}

/* ---- 3. The bundle -------------------------------------------------------------------------- */

typedef struct {
    const char *bundle, *out; /* folders */
    const char *weights;      /* safetensors: 8 bytes length of the header, JSON header, data */
    const char *header;
    const unsigned char *data;
    size_t data_size;
    size_t block;                      /* number of the block */
    size_t batch, tokens, dim;         /* B, N, C */
    size_t heads, head_dim, mlp_ratio; /* C = heads * head_dim */
    size_t rows, columns, first;       /* the patch grid; tokens before it: 1 class token or 0 */
    float norm_eps;
    int haar, differential, token_rprelu, layer_scale; /* switches of the block */
    int alpha_by_head, periodic, cls_low, eight, no_neighbours, differences; /* readings */
} Run;

static uint64_t little_endian(const unsigned char *bytes, int count)
{
    uint64_t number = 0;
    while (count-- > 0)
        number = number << 8 | bytes[count];
    return number;
}

/* `count` little-endian floats of 4 or 8 bytes, rounded to float32. */
static float *to_float32(const unsigned char *bytes, size_t count, int bytes_each)
{
    float *values = floats(count);
    for (size_t i = 0; i < count; i++) {
        uint64_t bits = little_endian(bytes + i * (size_t)bytes_each, bytes_each);
        if (bytes_each == 4) {
            uint32_t low = (uint32_t)bits;
            memcpy(values + i, &low, sizeof low);
        } else {
            double wide;
            memcpy(&wide, &bits, sizeof wide);
            values[i] = (float)wide;
        }
    }
    return values;
}

typedef struct {
    int rank;
    size_t size[4];
} Shape;

static size_t count_of(Shape shape)
{
    size_t count = 1;
    for (int i = 0; i < shape.rank; i++)
        count = times(count, shape.size[i]);
    return count;
}

/* Reads "1, 7, 10" up to `closing`; gives the character after it. */
static const char *read_shape(const char *p, char closing, Shape *shape, const char *where)
{
    shape->rank = 0;
    for (p = skip_space(p); *p != closing; p = skip_space(p)) {
        if (shape->rank == 4 || *p < '0' || *p > '9')
            die("%s: malformed shape", where);
        shape->size[shape->rank++] = whole(p);
        p = skip_space(p + strspn(p, "0123456789"));
        if (*p == ',')
            p++;
        else if (*p != closing)
            die("%s: malformed shape", where);
    }
    return p + 1;
}

static int same_shape(Shape a, Shape b)
{
    int same = a.rank == b.rank;
    for (int i = 0; same && i < a.rank; i++)
        same = a.size[i] == b.size[i];
    return same;
}

/* A .npy file of float32 or float64, in C order, in versions 1 to 3 of the format. */
static float *read_npy(const Run *run, const char *name, Shape *shape)
{
    File file = read_file(run->bundle, name);
    if (file.size < 12 || memcmp(file.bytes, "\x93NUMPY", 6) != 0)
        die("%s: not an .npy file", file.name);
    int length_bytes = file.bytes[6] == 1 ? 2 : 4;
    size_t start = 8 + (size_t)length_bytes;
    uint64_t length = little_endian(file.bytes + 8, length_bytes);
    if (length > file.size - start)
        die("%s: truncated in its header", file.name);
    where_json = file.name;
    char *header = cut((char *)file.bytes + start, (size_t)length);
    const char *sizes = strstr(header, "'shape': (");
    int eight_bytes = strstr(header, "'descr': '<f8'") != NULL;
    if (sizes == NULL || (!eight_bytes && strstr(header, "'descr': '<f4'") == NULL))
        die("%s: not an array of little-endian float32 or float64", file.name);
    if (strstr(header, "'fortran_order': False") == NULL)
        die("%s: not in C order", file.name);
    read_shape(sizes + strlen("'shape': ("), ')', shape, file.name);

    start += (size_t)length;
    int bytes_each = eight_bytes ? 8 : 4;
    size_t wanted = times(count_of(*shape), (size_t)bytes_each);
    if (file.size - start != wanted)
        die("%s: %lu bytes of values; its shape asks for %lu", file.name,
            (unsigned long)(file.size - start), (unsigned long)wanted);
    return to_float32(file.bytes + start, count_of(*shape), bytes_each);
}

/* One field of a line of CSV, quoted or not; *p goes on to the next field or the line's end. */
static char *csv_field(const char **p)
{
    const char *start = *p;
    if (*start != '"') {
        *p += strcspn(start, ",\r\n");
        char *field = cut(start, (size_t)(*p - start));
        *p += **p == ',';
        return field;
    }
    const char *end = strchr(start + 1, '"');
    if (end == NULL)
        die("index.csv: a quotation mark is missing");
    *p = end + 1;
    *p += **p == ',';
    return cut(start + 1, (size_t)(end - start - 1));
}

/* Which column of the line is called `wanted`: 0, 1 … */
static int csv_column(const char *line, const char *wanted)
{
    for (int column = 0; *line != 0 && *line != '\r' && *line != '\n'; column++)
        if (strcmp(csv_field(&line), wanted) == 0)
            return column;
    die("index.csv: no column is called %s", wanted);
    return -1;
}

/* The file of a tap, from index.csv. */
static char *file_of(const Run *run, const char *tap)
{
    File index = read_file(run->bundle, "index.csv");
    const char *p = (char *)index.bytes;
    int name_column = csv_column(p, "name"), file_column = csv_column(p, "file");
    while (*(p += strcspn(p, "\n")) == '\n') {
        const char *field = ++p;
        char *name = NULL, *file = NULL;
        for (int column = 0; column <= name_column || column <= file_column; column++) {
            char *text = csv_field(&field);
            if (column == name_column)
                name = text;
            if (column == file_column)
                file = text;
        }
        if (strcmp(name, tap) == 0) {
            if (file[0] == '/' || strstr(file, "..") != NULL)
                die("%s: %s lies outside the bundle", index.name, file);
            return file;
        }
    }
    die("%s: no tap is called %s", index.name, tap);
    return NULL;
}

typedef struct {
    Shape shape;
    size_t start, end; /* of its bytes in the data */
    int bytes_each;    /* 8 for float64, 4 for float32, 1 for packed bits */
} Entry;

/* One entry of the header of the weights; its bytes lie inside the data and suit its shape. */
static Entry read_entry(const Run *run, const char *json)
{
    Entry entry;
    Shape offsets;
    const char *dtype = member(json, "dtype");
    read_shape(expect(member(json, "shape"), '['), ']', &entry.shape, where_json);
    read_shape(expect(member(json, "data_offsets"), '['), ']', &offsets, where_json);
    entry.start = offsets.size[0];
    entry.end = offsets.size[1];
    entry.bytes_each = is_string(dtype, "F64") ? 8 : is_string(dtype, "F32") ? 4 : 1;
    if (entry.bytes_each == 1 && !is_string(dtype, "U8"))
        die("%s: the type %.6s; expected F32, F64 or U8", where_json, dtype);
    if (offsets.rank != 2 || entry.start > entry.end || entry.end > run->data_size ||
        entry.end - entry.start != times(count_of(entry.shape), (size_t)entry.bytes_each))
        die("%s: an entry is truncated or misplaced", where_json);
    return entry;
}

/* Reads the file and checks every entry; together they are as long as the data. */
static void open_weights(Run *run)
{
    File file = read_file(run->bundle, "weights.safetensors");
    uint64_t length = file.size < 8 ? UINT64_MAX : little_endian(file.bytes, 8);
    if (file.size < 8 || length > file.size - 8)
        die("%s: not a safetensors file, or truncated in its header", file.name);
    run->weights = file.name;
    run->header = cut((char *)file.bytes + 8, (size_t)length);
    run->data = file.bytes + 8 + length;
    run->data_size = file.size - 8 - (size_t)length;
    where_json = file.name;
    const char *p = expect(run->header, '{') - 1, *name, *value;
    size_t used = 0;
    while (next_member(&p, &name, &value)) {
        if (is_string(name, "__metadata__"))
            continue;
        Entry entry = read_entry(run, value);
        used += entry.end - entry.start;
    }
    if (*skip_space(p + 1) != 0 || used != run->data_size)
        die("%s: %lu bytes of data; its entries have %lu", file.name,
            (unsigned long)run->data_size, (unsigned long)used);
}

/* The parameter with this path and shape, as float32. */
static float *parameter(const Run *run, const char *path, Shape wanted)
{
    where_json = run->weights;
    const char *json = find_member(run->header, path);
    if (json == NULL)
        die("%s: no parameter is called %s", where_json, path);
    Entry entry = read_entry(run, json);
    if (entry.bytes_each == 1 || !same_shape(entry.shape, wanted))
        die("%s: %s does not have the type or shape that the network needs", where_json, path);
    return to_float32(run->data + entry.start, count_of(entry.shape), entry.bytes_each);
}

static float *vector(const Run *run, const char *path, const char *leaf, size_t count)
{
    return parameter(run, join(path, "", leaf), (Shape){1, {count}});
}

static int is_true(const char *object, const char *key)
{
    const char *value = member(object, key);
    if (strncmp(value, "true", 4) != 0 && strncmp(value, "false", 5) != 0)
        die("%s: \"%s\" is neither true nor false", where_json, key);
    return *value == 't';
}

/* The configuration [SPEC 6.5] of the network, from the manifest. */
static void read_config(Run *run)
{
    File file = read_file(run->bundle, "manifest.json");
    where_json = file.name;
    if (*skip_space(skip_value((char *)file.bytes, 0)) != 0)
        die("%s: something follows the JSON", file.name);
    const char *config = member((char *)file.bytes, "config");
    if (!is_string(member(config, "block"), "binary"))
        die("%s: its blocks are not binary", file.name);
    if (!is_string(member(config, "binarize"), "full"))
        die("%s: \"binarize\" is not \"full\": there is nothing to count bits of", file.name);
    run->dim = whole(member(config, "dim"));
    run->heads = whole(member(config, "heads"));
    run->mlp_ratio = whole(member(config, "mlp_ratio"));
    run->norm_eps = (float)strtod(member(config, "norm_eps"), NULL);
    size_t patch = whole(member(config, "patch_size"));
    const char *size = member(config, "image_size"); /* one number, or [height, width] */
    Shape image = {2, {0}};
    if (*size == '[')
        read_shape(size + 1, ']', &image, file.name);
    else
        image.size[0] = image.size[1] = whole(size);
    if (image.rank != 2 || run->heads == 0 || run->dim % run->heads != 0 || patch == 0)
        die("%s: image_size, patch_size, dim and heads do not fit each other", file.name);
    run->head_dim = run->dim / run->heads;
    run->rows = image.size[0] / patch;
    run->columns = image.size[1] / patch;
    run->first = (size_t)choice(config, "pool", "mean", "cls");
    run->tokens = run->first + times(run->rows, run->columns);
    run->haar = choice(config, "similarity", "plain", "haar");
    run->differential = choice(config, "attention", "plain", "differential");
    run->token_rprelu = choice(config, "rprelu", "channel", "token");
    run->alpha_by_head = choice(config, "alpha_scope", "layer", "head");
    run->periodic = choice(config, "haar_mode", "edge", "periodic");
    run->cls_low = choice(config, "haar_cls", "both", "low");
    run->no_neighbours = is_string(member(config, "neighbours"), "none");
    run->eight = !run->no_neighbours && choice(config, "neighbours", "existing", "eight");
    run->differences = choice(config, "context", "sum", "differences");
    run->layer_scale = is_true(config, "layer_scale");
}

/* ---- 4. Taps out ---------------------------------------------------------------------------- */

/* OUT_DIR/<name>.npy, version 1.0: magic, version, length of the header, header, values. */
static void write_npy(const Run *run, const char *name, const char *descr, Shape shape,
                      const void *values, size_t bytes_each)
{
    char sizes[128] = "", header[256];
    for (int i = 0; i < shape.rank; i++)
        sprintf(sizes + strlen(sizes), "%lu, ", (unsigned long)shape.size[i]);
    int length = sprintf(header, "{'descr': '%s', 'fortran_order': False, 'shape': (%s), }", descr,
                         sizes);
    while ((10 + length + 1) % 64 != 0) /* the values start at a multiple of 64 */
        header[length++] = ' ';
    header[length++] = '\n';

    const char *path = join(join(run->out, "/", name), ".npy", "");
    FILE *stream = fopen(path, "wb");
    if (stream == NULL)
        die("%s: %s", path, strerror(errno));
    unsigned char start[10] = {0x93, 'N', 'U', 'M', 'P', 'Y', 1, 0};
    start[8] = (unsigned char)(length & 255);
    start[9] = (unsigned char)(length >> 8);
    size_t count = count_of(shape);
    int whole_file = fwrite(start, 1, 10, stream) == 10 &&
                     fwrite(header, 1, (size_t)length, stream) == (size_t)length &&
                     fwrite(values, bytes_each, count, stream) == count;
    if (fclose(stream) != 0 || !whole_file)
        die("%s: cannot be written", path);
}

static void tap_real(const Run *run, const char *path, const char *leaf, Shape shape,
                     const float *values)
{
    write_npy(run, join(path, "", leaf), "<f4", shape, values, sizeof(float));
}

static void tap_int(const Run *run, const char *path, const char *leaf, Shape shape,
                    const int32_t *values)
{
    write_npy(run, join(path, "", leaf), "<i4", shape, values, sizeof(int32_t));
}

static size_t words_for(size_t bits)
{
    return (bits + 63) / 64;
}

/* Packed bits are stored as bytes: bit i of a row is bit i % 8 of byte i / 8 [SPEC 1]. */
static void tap_bit(const Run *run, const char *path, const char *leaf, Shape shape,
                    const uint64_t *words)
{
    Shape packed = shape;
    packed.size[shape.rank - 1] = 8 * words_for(shape.size[shape.rank - 1]);
    size_t bytes = count_of(packed);
    unsigned char *values = allocate(bytes, 1);
    for (size_t i = 0; i < bytes; i++)
        values[i] = (unsigned char)(words[i / 8] >> 8 * (i % 8));
    write_npy(run, join(path, "", leaf), "|u1", packed, values, 1);
}

/* ---- 5. Bits [SPEC 1] ----------------------------------------------------------------------- */

/* Bits z >= threshold (signs), or > threshold (boolean attention, where 1/2 rounds to 0). */
typedef enum { AT_LEAST, ABOVE } Side;

/* Each row of z becomes words_for(length) words; the padding stays 0. */
static uint64_t *pack(const float *z, size_t rows, size_t length, Side side, float threshold,
                      const char *name)
{
    size_t words = words_for(length);
    uint64_t *packed = allocate(times(rows, words), sizeof(uint64_t));
    for (size_t r = 0; r < rows; r++)
        for (size_t i = 0; i < length; i++) {
            float value = z[r * length + i];
            if (!isfinite(value))
                die("%s: a value that is not finite enters a sign", name);
            uint64_t bit = side == ABOVE ? value > threshold : value >= threshold;
            packed[r * words + i / 64] |= bit << i % 64;
        }
    return packed;
}

/* sign(-0.0) is +1, since -0.0 >= 0. */
static uint64_t *pack_signs(const float *z, size_t rows, size_t length, const char *name)
{
    return pack(z, rows, length, AT_LEAST, 0.0f, name);
}

/* The number of ones in a word: sums of 2, 4 and 8 neighbouring bits, then of all 8 bytes. */
static int32_t popcount(uint64_t w)
{
    w = w - (w >> 1 & UINT64_C(0x5555555555555555));
    w = (w & UINT64_C(0x3333333333333333)) + (w >> 2 & UINT64_C(0x3333333333333333));
    w = (w + (w >> 4)) & UINT64_C(0x0f0f0f0f0f0f0f0f);
    return (int32_t)(w * UINT64_C(0x0101010101010101) >> 56);
}

/* Product of two rows of signs: equal bits give +1, different ones -1. The padding of both is 0,
   so it is equal and never counted. */
static int32_t dot_signs(const uint64_t *a, const uint64_t *b, size_t length)
{
    int32_t different = 0;
    for (size_t w = 0; w < words_for(length); w++)
        different += popcount(a[w] ^ b[w]);
    return (int32_t)length - 2 * different;
}

/* Product of a row of 0 and 1 with a row of signs: the plus signs met less the minus signs met. */
static int32_t dot_boolean(const uint64_t *a, const uint64_t *v, size_t length)
{
    int32_t plus = 0, all = 0;
    for (size_t w = 0; w < words_for(length); w++) {
        plus += popcount(a[w] & v[w]);
        all += popcount(a[w]);
    }
    return 2 * plus - all;
}

typedef int32_t Dot(const uint64_t *, const uint64_t *, size_t);

/* a (batches, n, length) times b (batches, m, length) over the last axis: (batches, n, m). */
static int32_t *product(Dot *dot, const uint64_t *a, const uint64_t *b, size_t batches, size_t n,
                        size_t m, size_t length)
{
    size_t words = words_for(length);
    int32_t *y = allocate(times(times(batches, n), m), sizeof(int32_t));
    for (size_t k = 0; k < batches; k++)
        for (size_t i = 0; i < n; i++)
            for (size_t j = 0; j < m; j++)
                y[(k * n + i) * m + j] =
                    dot(a + (k * n + i) * words, b + (k * m + j) * words, length);
    return y;
}

/* ---- 6. Real operations --------------------------------------------------------------------- */

/* (x - mean) / sqrt(variance + eps) * weight + bias over each row: biased variance, two passes. */
static float *layer_norm(const Run *run, const char *path, const float *x, size_t rows,
                         size_t length)
{
    const float *weight = vector(run, path, ".weight", length);
    const float *bias = vector(run, path, ".bias", length);
    float *y = floats(times(rows, length));
    for (size_t r = 0; r < rows; r++) {
        const float *in = x + r * length;
        float mean = 0.0f, variance = 0.0f;
        for (size_t i = 0; i < length; i++)
            mean += in[i];
        mean /= (float)length;
        for (size_t i = 0; i < length; i++)
            variance += (in[i] - mean) * (in[i] - mean);
        variance /= (float)length;
        float deviation = sqrtf(variance + run->norm_eps);
        for (size_t i = 0; i < length; i++)
            y[r * length + i] = (in[i] - mean) / deviation * weight[i] + bias[i];
    }
    return y;
}

/* The shortcut around a matrix that changes the width [SPEC 5]: tiled, or means of neighbours. */
static float *fit(const float *x, size_t rows, size_t in, size_t out)
{
    float *y = floats(times(rows, out));
    if (out >= in ? out % in != 0 : in % out != 0)
        die("a projection from %lu to %lu channels has no shortcut", (unsigned long)in,
            (unsigned long)out);
    for (size_t r = 0; r < rows; r++)
        for (size_t o = 0; o < out; o++) {
            if (out >= in) {
                y[r * out + o] = x[r * in + o % in];
                continue;
            }
            size_t group = in / out;
            float sum = 0.0f;
            for (size_t i = 0; i < group; i++)
                sum += x[r * in + o * group + i];
            y[r * out + o] = sum / (float)group;
        }
    return y;
}

/* [SPEC 3] In place: shift, slope below 0, shift back; shifts a channel and, improved, a token. */
static void rprelu(const Run *run, const char *path, float *x, size_t channels)
{
    const float *shift_in = vector(run, path, ".shift_in", channels);
    const float *slope = vector(run, path, ".slope", channels);
    const float *shift_out = vector(run, path, ".shift_out", channels);
    const float *token_in = floats(run->tokens), *token_out = token_in; /* zeros */
    if (run->token_rprelu) {
        token_in = vector(run, path, ".token_shift_in", run->tokens);
        token_out = vector(run, path, ".token_shift_out", run->tokens);
    }
    for (size_t r = 0; r < run->batch * run->tokens; r++) {
        size_t token = r % run->tokens;
        for (size_t c = 0; c < channels; c++) {
            float u = x[r * channels + c] - shift_in[c] - token_in[token];
            float y = u > 0.0f ? u : slope[c] * u;
            x[r * channels + c] = y + shift_out[c] + token_out[token];
        }
    }
}

/* x + move, the same move in every row. */
static float *moved(const float *x, const float *move, size_t rows, size_t length)
{
    float *z = floats(times(rows, length));
    for (size_t r = 0; r < rows; r++)
        for (size_t i = 0; i < length; i++)
            z[r * length + i] = x[r * length + i] + move[i];
    return z;
}

/* [SPEC 2] Bits and scales of a latent matrix (out, in): the signs of its rows once their mean is
   taken off, and the mean absolute value of the rows as they are. */
static uint64_t *binary_weight(const Run *run, const char *path, size_t out, size_t in,
                               float **scale)
{
    const float *latent = parameter(run, join(path, ".weight", ""), (Shape){2, {out, in}});
    float *centred = floats(times(out, in));
    *scale = floats(out);
    for (size_t o = 0; o < out; o++) {
        const float *row = latent + o * in;
        float mean = 0.0f, size = 0.0f;
        for (size_t i = 0; i < in; i++) {
            mean += row[i];
            size += fabsf(row[i]);
        }
        mean /= (float)in;
        (*scale)[o] = size / (float)in;
        for (size_t i = 0; i < in; i++)
            centred[o * in + i] = row[i] - mean;
    }
    uint64_t *bits = pack_signs(centred, out, in, path);
    tap_real(run, path, ".weight.z", (Shape){2, {out, in}}, centred);
    tap_bit(run, path, ".weight.bit", (Shape){2, {out, in}}, bits);
    tap_real(run, path, ".weight.scale", (Shape){1, {out}}, *scale);
    return bits;
}

/* [SPEC 5] The binary projection P(x; in -> out), the unit around every binary matrix. */
static float *projection(const Run *run, const char *path, const float *x, size_t in, size_t out)
{
    size_t rows = run->batch * run->tokens;
    Shape narrow = {3, {run->batch, run->tokens, in}}, wide = {3, {run->batch, run->tokens, out}};
    float *scale;
    uint64_t *weight = binary_weight(run, path, out, in, &scale);

    float *z = moved(x, vector(run, path, ".move", in), rows, in);
    uint64_t *bits = pack_signs(z, rows, in, path);
    int32_t *whole_number = product(dot_signs, bits, weight, 1, rows, out, in);
    float *linear = floats(times(rows, out));
    for (size_t i = 0; i < rows * out; i++)
        linear[i] = scale[i % out] * (float)whole_number[i]; /* one rounding */
    float *norm = layer_norm(run, join(path, ".norm", ""), linear, rows, out);
    float *shortcut = fit(x, rows, in, out);
    float *y = floats(times(rows, out));
    for (size_t i = 0; i < rows * out; i++)
        y[i] = norm[i] + shortcut[i];
    rprelu(run, join(path, ".rprelu", ""), y, out);

    tap_real(run, path, ".z", narrow, z);
    tap_bit(run, path, ".bit", narrow, bits);
    tap_int(run, path, ".int", wide, whole_number);
    tap_real(run, path, ".linear", wide, linear);
    tap_real(run, path, ".norm", wide, norm);
    tap_real(run, path, ".out", wide, y);
    return y;
}

/* ---- 7. Attention [SPEC 6.1, 6.2] ----------------------------------------------------------- */

/* The patch at (row, column) of the grid of one image x (N, C). */
static const float *patch_at(const Run *run, const float *x, size_t row, size_t column)
{
    return x + (run->first + row * run->columns + column) * run->dim;
}

/* The row or column after this one: the last one repeats itself, or the first one follows. */
static size_t next_one(const Run *run, size_t index, size_t count)
{
    if (index + 1 < count)
        return index + 1;
    return run->periodic ? 0 : index;
}

/* Average band and the sum of the three details of a 2 x 2 block [SPEC 4]. */
static void haar_bands(float x00, float x01, float x10, float x11, float *low, float *high)
{
    float rows = 0.25f * ((x00 + x01) - (x10 + x11));     /* cH */
    float columns = 0.25f * ((x00 - x01) + (x10 - x11));  /* cV */
    float diagonal = 0.25f * ((x00 - x01) - (x10 - x11)); /* cD */
    *low = 0.25f * (x00 + x01 + x10 + x11);               /* cA */
    *high = (rows + columns) + diagonal;
}

/* Both bands of x (B, N, C); the class token is not on the grid and goes into both. */
static void bands(const Run *run, const float *x, float *low, float *high)
{
    size_t C = run->dim, image = run->tokens * C;
    for (size_t b = 0; b < run->batch; b++, x += image, low += image, high += image) {
        for (size_t c = 0; c < run->first * C; c++) {
            low[c] = x[c];
            high[c] = run->cls_low ? 0.0f : x[c];
        }
        for (size_t i = 0; i < run->rows; i++)
            for (size_t j = 0; j < run->columns; j++) {
                size_t below = next_one(run, i, run->rows), right = next_one(run, j, run->columns);
                const float *x00 = patch_at(run, x, i, j), *x01 = patch_at(run, x, i, right);
                const float *x10 = patch_at(run, x, below, j);
                const float *x11 = patch_at(run, x, below, right);
                size_t at = (size_t)(x00 - x);
                for (size_t c = 0; c < C; c++)
                    haar_bands(x00[c], x01[c], x10[c], x11[c], low + at + c, high + at + c);
            }
    }
}

/* The mean of the patches around each patch of m (B, N, C); 0 for the class token [R2]. */
static float *neighbour_mean(const Run *run, const float *m)
{
    size_t C = run->dim, image = run->tokens * C;
    float *mean = floats(times(run->batch, image));
    for (size_t b = 0; b < run->batch && !run->no_neighbours; b++)
        for (size_t i = 0; i < run->rows; i++)
            for (size_t j = 0; j < run->columns; j++) {
                float *sum = mean + b * image + (run->first + i * run->columns + j) * C;
                size_t count = 0;
                for (size_t row = i > 0 ? i - 1 : 0; row <= i + 1 && row < run->rows; row++)
                    for (size_t column = j > 0 ? j - 1 : 0;
                         column <= j + 1 && column < run->columns; column++) {
                        if (row == i && column == j)
                            continue;
                        const float *neighbour = patch_at(run, m + b * image, row, column);
                        for (size_t c = 0; c < C; c++)
                            sum[c] += neighbour[c];
                        count++;
                    }
                if (run->eight)
                    count = 8;
                for (size_t c = 0; c < C && count > 0; c++)
                    sum[c] /= (float)count;
            }
    return mean;
}

/* (B, N, C) to (B, heads, N, d), or to (B, heads, d, N) for the values; back is merge_heads. */
static float *split_heads(const Run *run, const float *x, int transposed)
{
    size_t N = run->tokens, C = run->dim, d = run->head_dim;
    float *y = floats(times(run->batch * N, C));
    for (size_t b = 0; b < run->batch; b++)
        for (size_t n = 0; n < N; n++)
            for (size_t c = 0; c < C; c++) {
                size_t head = c / d, k = c % d;
                size_t start = (b * run->heads + head) * N * d;
                y[start + (transposed ? k * N + n : n * d + k)] = x[(b * N + n) * C + c];
            }
    return y;
}

static float *merge_heads(const Run *run, const float *x)
{
    size_t N = run->tokens, C = run->dim, d = run->head_dim;
    float *y = floats(times(run->batch * N, C));
    for (size_t b = 0; b < run->batch; b++)
        for (size_t n = 0; n < N; n++)
            for (size_t c = 0; c < C; c++)
                y[(b * N + n) * C + c] = x[((b * run->heads + c / d) * N + n) * d + c % d];
    return y;
}

/* b_t = sign(m_t + move_t) of one of the projections, by heads, packed along the reduced axis:
   channels of a head for queries and keys, tokens for values. */
static uint64_t *head_bits(const Run *run, const char *attn, const char *t, const float *m)
{
    int value = strcmp(t, "v") == 0;
    size_t N = run->tokens, d = run->head_dim, heads = run->batch * run->heads;
    Shape shape = {4, {run->batch, run->heads, value ? d : N, value ? N : d}};
    const char *path = join(attn, ".", t);
    float *z = moved(m, vector(run, path, "_move", run->dim), run->batch * N, run->dim);
    z = split_heads(run, z, value);
    uint64_t *bits = pack_signs(z, heads * shape.size[2], shape.size[3], path);
    tap_real(run, path, ".head_z", shape, z);
    tap_bit(run, path, ".head_bit", shape, bits);
    return bits;
}

/* b_q b_k^T of one band (B, heads, N, N); the queries and keys are named q<band>, k<band>. The
   shortcuts m_q and m_k are added to `shortcuts`. */
static int32_t *similarity(const Run *run, const char *attn, const char *band, const float *x,
                           float *shortcuts)
{
    size_t N = run->tokens, C = run->dim, d = run->head_dim;
    const char *names[2] = {join("q", band, ""), join("k", band, "")};
    uint64_t *bits[2];
    for (int t = 0; t < 2; t++) {
        float *m = projection(run, join(attn, ".", names[t]), x, C, C);
        bits[t] = head_bits(run, attn, names[t], m);
        for (size_t i = 0; i < run->batch * N * C; i++)
            shortcuts[i] += m[i];
    }
    int32_t *scores = product(dot_signs, bits[0], bits[1], run->batch * run->heads, N, N, d);
    Shape shape = {4, {run->batch, run->heads, N, N}};
    tap_int(run, join(attn, ".scores", band), ".int", shape, scores);
    return scores;
}

/* Scores before the softmax (B, heads, N, N). The quotient by sqrt(d) is the last operation. */
static float *attention_scores(const Run *run, const char *attn, const float *x, float *shortcuts)
{
    size_t N = run->tokens, size = run->batch * N * run->dim;
    size_t count = times(run->batch * run->heads, N * N);
    float *scores = floats(count), root = sqrtf((float)run->head_dim);
    if (!run->haar) {
        const int32_t *plain = similarity(run, attn, "", x, shortcuts);
        for (size_t i = 0; i < count; i++)
            scores[i] = (float)plain[i] / root;
    } else {
        float *low = floats(size), *high = floats(size);
        bands(run, x, low, high);
        tap_real(run, attn, ".low", (Shape){3, {run->batch, N, run->dim}}, low);
        tap_real(run, attn, ".high", (Shape){3, {run->batch, N, run->dim}}, high);
        const int32_t *by_low = similarity(run, attn, "_low", low, shortcuts);
        const int32_t *by_high = similarity(run, attn, "_high", high, shortcuts);
        const float *weight =
            parameter(run, join(attn, ".band_weight", ""), (Shape){2, {2, run->heads}});
        for (size_t i = 0; i < count; i++) {
            size_t head = i / (N * N) % run->heads;
            float first = weight[head] * (float)by_low[i];
            float second = weight[run->heads + head] * (float)by_high[i];
            scores[i] = (first + second) / root;
        }
    }
    tap_real(run, attn, ".scores", (Shape){4, {run->batch, run->heads, N, N}}, scores);
    return scores;
}

/* Softmax of every row, in place; the largest score is taken off first. */
static void softmax(float *x, size_t rows, size_t length)
{
    for (size_t r = 0; r < rows; r++) {
        float *row = x + r * length, largest = row[0], sum = 0.0f;
        for (size_t j = 1; j < length; j++)
            largest = row[j] > largest ? row[j] : largest;
        for (size_t j = 0; j < length; j++)
            sum += row[j] = expf(row[j] - largest);
        for (size_t j = 0; j < length; j++)
            row[j] /= sum;
    }
}

/* alpha' of every head: the step of the boolean attention, at least 1e-5 [SPEC 2]. */
static float *steps(const Run *run, const char *attn)
{
    Shape shape = {run->alpha_by_head ? 3 : 0, {run->heads, 1, 1}};
    const float *alpha = parameter(run, join(attn, ".alpha", ""), shape);
    float *step = floats(run->heads);
    for (size_t h = 0; h < run->heads; h++)
        step[h] = fmaxf(alpha[run->alpha_by_head ? h : 0], 1e-5f);
    return step;
}

/* context="differences" [R1b]: each of a query's ones counts its value less the query's own. */
static void subtract_own_values(const uint64_t *bits, const uint64_t *values, size_t heads,
                                size_t N, size_t d, int32_t *whole_number)
{
    size_t words = words_for(N);
    for (size_t h = 0; h < heads; h++)
        for (size_t i = 0; i < N; i++) {
            int32_t ones = 0;
            for (size_t w = 0; w < words; w++)
                ones += popcount(bits[(h * N + i) * words + w]);
            for (size_t c = 0; c < d; c++) {
                uint64_t word = values[(h * d + c) * words + i / 64];
                int32_t own = (word >> (i % 64)) & 1 ? 1 : -1;
                whole_number[(h * N + i) * d + c] -= ones * own;
            }
        }
}

/* Boolean attention times the signs of the values: (B, N, C). `q` holds the scores at first. */
static float *attention_context(const Run *run, const char *attn, float *q, const uint64_t *values)
{
    size_t N = run->tokens, d = run->head_dim, heads = run->batch * run->heads;
    Shape square = {4, {run->batch, run->heads, N, N}}, tall = {4, {run->batch, run->heads, N, d}};
    const float *step = steps(run, attn);
    softmax(q, heads * N, N);
    for (size_t i = 0; i < heads * N * N; i++)
        q[i] /= step[i / (N * N) % run->heads];
    uint64_t *bits = pack(q, heads * N, N, ABOVE, 0.5f, attn);
    int32_t *whole_number = product(dot_boolean, bits, values, heads, N, d, N);
    if (run->differences)
        subtract_own_values(bits, values, heads, N, d, whole_number);
    float *context = floats(heads * N * d);
    for (size_t i = 0; i < heads * N * d; i++)
        context[i] = step[i / (N * d) % run->heads] * (float)whole_number[i];
    tap_real(run, attn, ".prob.z", square, q);
    tap_bit(run, attn, ".prob.bit", square, bits);
    tap_int(run, attn, ".context.int", tall, whole_number);
    tap_real(run, attn, ".context", tall, context);
    return merge_heads(run, context);
}

/* What the values add past the attention: themselves, or the differential term (B, N, C). */
static float *value_shortcut(const Run *run, const char *attn, const float *m)
{
    size_t C = run->dim, count = run->batch * run->tokens * C;
    float *y = floats(count);
    memcpy(y, m, count * sizeof(float));
    if (!run->differential)
        return y;
    const float *own = vector(run, attn, ".shortcut", C);
    const float *around = vector(run, attn, ".neighbour", C);
    float *mean = neighbour_mean(run, m);
    for (size_t i = 0; i < count; i++)
        y[i] = own[i % C] * m[i] - around[i % C] * mean[i];
    tap_real(run, attn, ".neighbour_mean", (Shape){3, {run->batch, run->tokens, C}}, mean);
    return y;
}

/* The attention of n1 (B, N, C), with its output projection. */
static float *attention(const Run *run, const char *attn, const float *n1)
{
    size_t C = run->dim, rows = run->batch * run->tokens;
    Shape shape = {3, {run->batch, run->tokens, C}};
    float *shortcuts = floats(times(rows, C));
    float *scores = attention_scores(run, attn, n1, shortcuts);
    float *m_v = projection(run, join(attn, ".v", ""), n1, C, C);
    float *context = attention_context(run, attn, scores, head_bits(run, attn, "v", m_v));
    float *o = layer_norm(run, join(attn, ".norm", ""), context, rows, C);
    tap_real(run, attn, ".norm.out", shape, o);
    float *difference = value_shortcut(run, attn, m_v);
    for (size_t i = 0; i < rows * C; i++)
        o[i] = o[i] + shortcuts[i] + difference[i];
    rprelu(run, join(attn, ".rprelu", ""), o, C);
    tap_real(run, attn, ".out", shape, o);
    return projection(run, join(attn, ".proj", ""), o, C, C);
}

/* ---- 8. The block --------------------------------------------------------------------------- */

/* x + scale(branch), in place; the scale (alpha * z + beta) only where the network has one. */
static void add_branch(const Run *run, const char *scale, float *x, const float *branch)
{
    size_t C = run->dim, count = run->batch * run->tokens * C;
    const float *alpha = run->layer_scale ? vector(run, scale, ".alpha", C) : NULL;
    const float *beta = run->layer_scale ? vector(run, scale, ".beta", C) : NULL;
    for (size_t i = 0; i < count; i++)
        x[i] += alpha ? alpha[i % C] * branch[i] + beta[i % C] : branch[i];
}

/* x (B, N, C) becomes what leaves the block. */
static void block(const Run *run, float *x)
{
    char path[64];
    sprintf(path, "blocks.%lu", (unsigned long)run->block);
    size_t C = run->dim, hidden = times(C, run->mlp_ratio), rows = run->batch * run->tokens;
    Shape shape = {3, {run->batch, run->tokens, C}};

    float *n1 = layer_norm(run, join(path, ".norm1", ""), x, rows, C);
    tap_real(run, path, ".norm1.out", shape, n1);
    add_branch(run, join(path, ".scale1", ""), x, attention(run, join(path, ".attn", ""), n1));
    tap_real(run, path, ".mid", shape, x);

    float *n2 = layer_norm(run, join(path, ".norm2", ""), x, rows, C);
    tap_real(run, path, ".norm2.out", shape, n2);
    float *up = projection(run, join(path, ".mlp.up", ""), n2, C, hidden);
    float *down = projection(run, join(path, ".mlp.down", ""), up, hidden, C);
    add_branch(run, join(path, ".scale2", ""), x, down);
    tap_real(run, path, ".out", shape, x);
}

int main(int count, char **arguments)
{
    const union {
        uint32_t number;
        unsigned char first;
    } order = {1};
    if (count != 4)
        die("usage: didb_block BUNDLE BLOCK OUT_DIR");
    if (order.first != 1)
        die("this machine is big-endian; .npy files are written here as they lie in memory");
    char *end;
    Run run = {0};
    run.bundle = arguments[1];
    run.block = strtoul(arguments[2], &end, 10);
    run.out = arguments[3];
    if (arguments[2][0] < '0' || arguments[2][0] > '9' || *end != 0)
        die("BLOCK is \"%s\"; expected a whole number", arguments[2]);
    read_config(&run);
    open_weights(&run);

    char entry[64] = "tokens"; /* the tap that enters the block */
    if (run.block > 0)
        sprintf(entry, "blocks.%lu.out", (unsigned long)(run.block - 1));
    Shape shape;
    float *x = read_npy(&run, file_of(&run, entry), &shape);
    if (shape.rank != 3 || shape.size[1] != run.tokens || shape.size[2] != run.dim)
        die("tap %s does not have the shape (B, %lu, %lu)", entry, (unsigned long)run.tokens,
            (unsigned long)run.dim);
    run.batch = shape.size[0];
    tap_real(&run, entry, "", shape, x);
    block(&run, x);
    return 0;
}
