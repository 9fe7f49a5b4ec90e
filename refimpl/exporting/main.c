
static float image[PIXELS], logits[LOGITS];

static int read_image(FILE *file, int size) /* of numbers of 4 or 8 bytes; 0 at the end */
{
    int i;
    for (i = 0; i < PIXELS; i++) {
        double wide;
        if (size == 8 && fread(&wide, sizeof wide, 1, file) == 1)
            image[i] = (float)wide;
        else if (size == 8 || fread(&image[i], sizeof image[i], 1, file) != 1)
            return i == 0 ? 0 : -1;
    }
    return 1;
}

int main(int count, char **arguments)
{
    unsigned char magic[10];
    char header[10000];
    size_t length;
    int size, more;
    FILE *file;
    if (count != 3) {
        fprintf(stderr, "usage: %s IMAGES.npy FOLDER\n", arguments[0]);
        return 2;
    }
    tap_folder = arguments[2];
    file = fopen(arguments[1], "rb");
    if (file == NULL || fread(magic, 1, 10, file) != 10 || memcmp(magic, "\x93NUMPY\1", 7) != 0) {
        fprintf(stderr, "%s: expected images as .npy, version 1\n", arguments[1]);
        return 2;
    }
    length = magic[8] + 256u * magic[9];
    if (length >= sizeof header || fread(header, 1, length, file) != length) {
        fprintf(stderr, "%s: cut off in its header\n", arguments[1]);
        return 2;
    }
    header[length] = 0;
    size = strstr(header, "'<f8'") != NULL ? 8 : strstr(header, "'<f4'") != NULL ? 4 : 0;
    if (size == 0 || strstr(header, "'fortran_order': False") == NULL ||
        strstr(header, SHAPE) == NULL) {
        fprintf(stderr, "%s: expected float32 or float64 of the shape (B%s\n", arguments[1], SHAPE);
        return 2;
    }
    tap_parameters();
    while ((more = read_image(file, size)) == 1) {
        printf("%d\n", RUN(image, logits));
        tap_image++;
    }
    fclose(file);
    if (more < 0)
        fprintf(stderr, "%s: cut off in an image\n", arguments[1]);
    return more < 0 ? 2 : 0;
}
