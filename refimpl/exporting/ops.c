/* One small function an operation, as refimpl/ops has them; an export takes those that it calls.
 *
 * Arrays are row by row, C channels a row. A row of bits begins in a word of its own, least
 * significant bit first, padded with 0. `y` may be `x` where nothing else is said: functions of
 * single elements and of single rows work in place. Sums run in eight lanes, element i in lane
 * i mod 8, which are then added in pairs.
 */

#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#define WORDS(n) (((n) + 63) / 64)
typedef uint64_t word;

#if defined(__AVX2__) && !defined(POPCOUNT_BUILTIN) && !defined(POPCOUNT_TABLE)
#include <immintrin.h>
#define POPCOUNT_AVX2
#endif

/* --- words of bits --- */

#if defined(POPCOUNT_TABLE) || !defined(__GNUC__)
static int ones(word w)
{
#define TWO(n) n, n + 1, n + 1, n + 2
#define FOUR(n) TWO(n), TWO(n + 1), TWO(n + 1), TWO(n + 2)
#define SIX(n) FOUR(n), FOUR(n + 1), FOUR(n + 1), FOUR(n + 2)
    static const unsigned char table[256] = {SIX(0), SIX(1), SIX(1), SIX(2)};
    int count = 0;
    for (; w != 0; w >>= 8)
        count += table[w & 255];
    return count;
}
#else
static int ones(word w)
{
    return __builtin_popcountll(w);
}
#endif

#ifdef POPCOUNT_AVX2
static __m256i ones_of_four(__m256i words) /* of each word, by a table of half bytes */
{
    const __m256i table = _mm256_setr_epi8(0, 1, 1, 2, 1, 2, 2, 3, 1, 2, 2, 3, 2, 3, 3, 4,
                                           0, 1, 1, 2, 1, 2, 2, 3, 1, 2, 2, 3, 2, 3, 3, 4);
    const __m256i half = _mm256_set1_epi8(15);
    const __m256i low = _mm256_and_si256(words, half);
    const __m256i high = _mm256_and_si256(_mm256_srli_epi16(words, 4), half);
    const __m256i bytes =
        _mm256_add_epi8(_mm256_shuffle_epi8(table, low), _mm256_shuffle_epi8(table, high));
    return _mm256_sad_epu8(bytes, _mm256_setzero_si256());
}
static int sum_of_four(__m256i counts)
{
    const __m128i two =
        _mm_add_epi64(_mm256_castsi256_si128(counts), _mm256_extracti128_si256(counts, 1));
    return (int)(_mm_extract_epi64(two, 0) + _mm_extract_epi64(two, 1));
}
#endif

static int differing(const word *a, const word *b, int words) /* popcount(a ^ b) */
{
    int count = 0, i = 0;
#ifdef POPCOUNT_AVX2
    if (words >= 4) {
        __m256i counts = _mm256_setzero_si256();
        for (; i + 4 <= words; i += 4) {
            const __m256i four = _mm256_xor_si256(_mm256_loadu_si256((const __m256i *)(a + i)),
                                                  _mm256_loadu_si256((const __m256i *)(b + i)));
            counts = _mm256_add_epi64(counts, ones_of_four(four));
        }
        count = sum_of_four(counts);
    }
#endif
    for (; i < words; i++)
        count += ones(a[i] ^ b[i]);
    return count;
}

static int common(const word *a, const word *b, int words) /* popcount(a & b) */
{
    int count = 0, i = 0;
#ifdef POPCOUNT_AVX2
    if (words >= 4) {
        __m256i counts = _mm256_setzero_si256();
        for (; i + 4 <= words; i += 4) {
            const __m256i four = _mm256_and_si256(_mm256_loadu_si256((const __m256i *)(a + i)),
                                                  _mm256_loadu_si256((const __m256i *)(b + i)));
            counts = _mm256_add_epi64(counts, ones_of_four(four));
        }
        count = sum_of_four(counts);
    }
#endif
    for (; i < words; i++)
        count += ones(a[i] & b[i]);
    return count;
}

static void pack_above(const float *x, float threshold, int n, word *bits) /* bit: x > threshold */
{
    int i, j;
    for (i = 0; i < n; i += 64) {
        const int end = n - i < 64 ? n - i : 64;
        word w = 0;
        for (j = 0; j < end; j++)
            w |= (word)(x[i + j] > threshold) << j;
        bits[i / 64] = w;
    }
}

static void pack_signs(const float *x, int n, word *bits) /* bit: x >= 0 */
{
    int i, j;
    for (i = 0; i < n; i += 64) {
        const int end = n - i < 64 ? n - i : 64;
        word w = 0;
        for (j = 0; j < end; j++)
            w |= (word)(x[i + j] >= 0.0f) << j;
        bits[i / 64] = w;
    }
}

/* --- binary operations --- */

static void sign(const float *x, int rows, int n, word *bits)
{
    int r;
    for (r = 0; r < rows; r++)
        pack_signs(x + r * n, n, bits + r * WORDS(n));
}

static void sign_values(const float *x, int n, float *y) /* the signs as -1 and +1 */
{
    int i;
    for (i = 0; i < n; i++)
        y[i] = x[i] >= 0.0f ? 1.0f : -1.0f;
}

/* bits (rows, I), weight (O, I) -> y (rows, O) = scale * whole number; scale NULL is 1 */
static void binary_linear(const word *bits, const word *weight, const float *scale, int rows,
                          int inputs, int outputs, float *y)
{
    const int words = WORDS(inputs);
    int o, r;
    for (o = 0; o < outputs; o++) {
        const float s = scale != NULL ? scale[o] : 1.0f;
        for (r = 0; r < rows; r++) {
            const int count = differing(bits + r * words, weight + o * words, words);
            y[r * outputs + o] = (float)(inputs - 2 * count) * s;
        }
    }
}

/* a (batch, m, K), b (batch, n, K) -> whole numbers y (batch, m, n) */
static void binary_matmul(const word *a, const word *b, int batch, int m, int n, int length,
                          float *y)
{
    const int words = WORDS(length);
    int k, i, j;
    for (k = 0; k < batch; k++)
        for (i = 0; i < m; i++)
            for (j = 0; j < n; j++)
                *y++ = (float)(length - 2 * differing(a + (k * m + i) * words,
                                                      b + (k * n + j) * words, words));
}

/* probabilities (batch, heads, each) over the step of each head; a bit is 1 above 1/2 */
static void ratio(const float *x, const float *step, int batch, int heads, int each, float *y)
{
    int k, i;
    for (k = 0; k < batch * heads; k++) {
        const float s = step[k % heads];
        for (i = 0; i < each; i++)
            y[k * each + i] = x[k * each + i] / s;
    }
}

static void above_half(const float *x, int rows, int n, word *bits)
{
    int r;
    for (r = 0; r < rows; r++)
        pack_above(x + r * n, 0.5f, n, bits + r * WORDS(n));
}

/* bits (batch, heads, N, N), value (batch, heads, d, N) -> y (batch, heads, N, d); step NULL is 1.
 * differences: minus the number of keys times the token's own value */
static void boolean_attention(const word *bits, const word *value, const float *step, int batch,
                              int heads, int n, int d, int differences, float *y)
{
    const int words = WORDS(n);
    int k, i, c;
    for (k = 0; k < batch * heads; k++) {
        const float s = step != NULL ? step[k % heads] : 1.0f;
        for (i = 0; i < n; i++) {
            const word *row = bits + (k * n + i) * words;
            const int keys = common(row, row, words);
            for (c = 0; c < d; c++) {
                const word *v = value + (k * d + c) * words;
                int sum = 2 * common(row, v, words) - keys;
                if (differences)
                    sum -= (v[i / 64] >> (i % 64) & 1) ? keys : -keys;
                *y++ = (float)sum * s;
            }
        }
    }
}

/* w_low * low + w_high * high, weight (2, heads), over the root of d */
static void band_sum(const float *low, const float *high, const float *weight, int batch,
                     int heads, int each, float root, float *y)
{
    int k, i;
    for (k = 0; k < batch * heads; k++) {
        const float a = weight[k % heads], b = weight[heads + k % heads];
        for (i = k * each; i < (k + 1) * each; i++)
            y[i] = (a * low[i] + b * high[i]) / root;
    }
}

/* --- sums and norms --- */

static float sum(const float *x, int n)
{
    float lane[8] = {0};
    int i, j;
    for (i = 0; i + 8 <= n; i += 8)
        for (j = 0; j < 8; j++)
            lane[j] += x[i + j];
    for (j = 0; i + j < n; j++)
        lane[j] += x[i + j];
    return ((lane[0] + lane[1]) + (lane[2] + lane[3])) +
           ((lane[4] + lane[5]) + (lane[6] + lane[7]));
}

static float dot(const float *a, const float *b, int n)
{
    float lane[8] = {0};
    int i, j;
    for (i = 0; i + 8 <= n; i += 8)
        for (j = 0; j < 8; j++)
            lane[j] += a[i + j] * b[i + j];
    for (j = 0; i + j < n; j++)
        lane[j] += a[i + j] * b[i + j];
    return ((lane[0] + lane[1]) + (lane[2] + lane[3])) +
           ((lane[4] + lane[5]) + (lane[6] + lane[7]));
}

static void layer_norm(const float *x, const float *weight, const float *bias, int rows, int n,
                       float eps, float *y)
{
    int r, i;
    for (r = 0; r < rows; r++, x += n, y += n) {
        const float mean = sum(x, n) / (float)n;
        float std;
        for (i = 0; i < n; i++)
            y[i] = x[i] - mean;
        std = sqrtf(dot(y, y, n) / (float)n + eps);
        for (i = 0; i < n; i++)
            y[i] = y[i] / std * weight[i] + bias[i];
    }
}

/* running statistics; std is the root of the variance + eps */
static void batch_norm(const float *x, const float *weight, const float *bias, const float *mean,
                       const float *std, int rows, int n, float *y)
{
    int r, i;
    for (r = 0; r < rows; r++, x += n, y += n)
        for (i = 0; i < n; i++)
            y[i] = (x[i] - mean[i]) / std[i] * weight[i] + bias[i];
}

static void softmax_row(const float *x, int n, float *y)
{
    float most = x[0], total;
    int i;
    for (i = 1; i < n; i++)
        most = x[i] > most ? x[i] : most;
    for (i = 0; i < n; i++)
        y[i] = expf(x[i] - most);
    total = sum(y, n);
    for (i = 0; i < n; i++)
        y[i] /= total;
}

static void softmax(const float *x, int rows, int n, float *y)
{
    int r;
    for (r = 0; r < rows; r++)
        softmax_row(x + r * n, n, y + r * n);
}

/* only keys from the query's side of the roll: side (windows, n) of each token */
static void window_softmax(const float *x, const unsigned char *side, int windows, int heads,
                           int n, float *y)
{
    int k, i, j;
    for (k = 0; k < windows * heads; k++) {
        const unsigned char *own = side + k / heads * n;
        for (i = 0; i < n; i++, x += n, y += n) {
            float most = x[i], total = 0.0f;
            for (j = 0; j < n; j++)
                most = own[j] == own[i] && x[j] > most ? x[j] : most;
            for (j = 0; j < n; j++)
                y[j] = own[j] == own[i] ? expf(x[j] - most) : 0.0f;
            total = sum(y, n);
            for (j = 0; j < n; j++)
                y[j] /= total;
        }
    }
}

/* --- elements --- */

static void add(const float *a, const float *b, int n, float *y)
{
    int i;
    for (i = 0; i < n; i++)
        y[i] = a[i] + b[i];
}

static void divide(const float *x, int n, float divisor, float *y)
{
    int i;
    for (i = 0; i < n; i++)
        y[i] = x[i] / divisor;
}

static void rescale(const float *x, int n, float factor, float *y)
{
    int i;
    for (i = 0; i < n; i++)
        y[i] = x[i] * factor;
}

static void gelu(const float *x, int n, float *y)
{
    int i;
    for (i = 0; i < n; i++)
        y[i] = x[i] * (0.5f * (1.0f + erff(x[i] / 1.41421356f)));
}

static void shift(const float *x, const float *move, int rows, int n, float *y)
{
    int r, i;
    for (r = 0; r < rows; r++, x += n, y += n)
        for (i = 0; i < n; i++)
            y[i] = x[i] + move[i];
}

/* the shortcut of a projection, y (rows, O) + fit(x (rows, I)), where O is a multiple of I */
static void add_repeated(const float *y, const float *x, int rows, int inputs, int outputs,
                         float *out)
{
    int r, o;
    for (r = 0; r < rows; r++)
        for (o = 0; o < outputs; o++)
            out[r * outputs + o] = y[r * outputs + o] + x[r * inputs + o % inputs];
}

/* and where I is a multiple of O: means of channels that lie side by side */
static void add_means(const float *y, const float *x, int rows, int inputs, int outputs, float *out)
{
    const int each = inputs / outputs;
    int r, i;
    for (r = 0; r < rows * outputs; r++, x += each) {
        float total = x[0];
        for (i = 1; i < each; i++)
            total += x[i];
        out[r] = y[r] + total / (float)each;
    }
}

static void layer_scale(const float *x, const float *alpha, const float *beta, int rows, int n,
                        float *y)
{
    int r, i;
    for (r = 0; r < rows; r++, x += n, y += n)
        for (i = 0; i < n; i++)
            y[i] = beta != NULL ? alpha[i] * x[i] + beta[i] : alpha[i] * x[i];
}

static void rprelu(const float *x, const float *shift_in, const float *slope,
                   const float *shift_out, int rows, int n, float *y)
{
    int r, i;
    for (r = 0; r < rows; r++, x += n, y += n)
        for (i = 0; i < n; i++) {
            const float u = x[i] - shift_in[i];
            y[i] = (u > 0.0f ? u : slope[i] * u) + shift_out[i];
        }
}

/* the same with shifts a token */
static void rprelu_tokens(const float *x, const float *shift_in, const float *slope,
                          const float *shift_out, const float *token_in, const float *token_out,
                          int rows, int n, float *y)
{
    int r, i;
    for (r = 0; r < rows; r++, x += n, y += n)
        for (i = 0; i < n; i++) {
            const float u = x[i] - shift_in[i] - token_in[r];
            y[i] = (u > 0.0f ? u : slope[i] * u) + shift_out[i] + token_out[r];
        }
}

static void differential(const float *value, const float *mean, const float *shortcut,
                         const float *neighbour, int rows, int n, float *y)
{
    int r, i;
    for (r = 0; r < rows; r++, value += n, mean += n, y += n)
        for (i = 0; i < n; i++)
            y[i] = shortcut[i] * value[i] - neighbour[i] * mean[i];
}

/* --- the patch grid; `first` tokens stand in front of it. y is not x --- */

/* Haar bands: the block of a token is itself, its right and lower neighbours */
static void bands(const float *x, int first, int gh, int gw, int n, int periodic, float *low,
                  float *high)
{
    int i, j, c;
    memcpy(low, x, sizeof(float) * (size_t)(first * n));
    memcpy(high, x, sizeof(float) * (size_t)(first * n));
    x += first * n, low += first * n, high += first * n;
    for (i = 0; i < gh; i++) {
        const int below = i + 1 < gh ? i + 1 : periodic ? 0 : i;
        for (j = 0; j < gw; j++) {
            const int right = j + 1 < gw ? j + 1 : periodic ? 0 : j;
            const float *x00 = x + (i * gw + j) * n, *x01 = x + (i * gw + right) * n;
            const float *x10 = x + (below * gw + j) * n, *x11 = x + (below * gw + right) * n;
            for (c = 0; c < n; c++) {
                const float top = x00[c] + x01[c], bottom = x10[c] + x11[c];
                const float top_difference = x00[c] - x01[c], bottom_difference = x10[c] - x11[c];
                const float h = (top - bottom) * 0.25f;
                const float v = (top_difference + bottom_difference) * 0.25f;
                const float d = (top_difference - bottom_difference) * 0.25f;
                low[(i * gw + j) * n + c] = (top + bottom) * 0.25f;
                high[(i * gw + j) * n + c] = (h + v) + d;
            }
        }
    }
}

/* mean of the neighbours that exist, or their sum over 8 */
static void neighbours(const float *x, int first, int gh, int gw, int n, int eight, float *y)
{
    int i, j, k, l, c;
    memset(y, 0, sizeof(float) * (size_t)((first + gh * gw) * n));
    x += first * n, y += first * n;
    for (i = 0; i < gh; i++)
        for (j = 0; j < gw; j++, y += n) {
            int count = 0;
            for (k = i > 0 ? i - 1 : 0; k <= i + 1 && k < gh; k++)
                for (l = j > 0 ? j - 1 : 0; l <= j + 1 && l < gw; l++) {
                    const float *other = x + (k * gw + l) * n;
                    if (k == i && l == j)
                        continue;
                    count++;
                    for (c = 0; c < n; c++)
                        y[c] += other[c];
                }
            if (eight || count == 0)
                count = 8;
            for (c = 0; c < n; c++)
                y[c] /= (float)count;
        }
}

/* mean over `side` tokens along rows (axis 0) or columns (axis 1), 0 beyond the grid */
static void box(const float *x, int gh, int gw, int n, int side, int axis, float *y)
{
    const int length = axis == 0 ? gh : gw, step = axis == 0 ? gw : 1;
    int t, k, c;
    for (t = 0; t < gh * gw; t++, y += n) {
        const int at = axis == 0 ? t / gw : t % gw;
        memset(y, 0, sizeof(float) * (size_t)n);
        for (k = -(side / 2); k <= side / 2; k++) {
            const float *other = x + (t + k * step) * n;
            if (at + k < 0 || at + k >= length)
                continue;
            for (c = 0; c < n; c++)
                y[c] += other[c];
        }
        for (c = 0; c < n; c++)
            y[c] /= (float)side;
    }
}

/* --- places. y is not x --- */

static void class_token(const float *x, const float *token, int rows, int n, float *y)
{
    memcpy(y, token, sizeof(float) * (size_t)n);
    memcpy(y + n, x, sizeof(float) * (size_t)(rows * n));
}

/* rows of x in another order: windows, and neighbours that are merged */
static void gather(const float *x, const uint32_t *order, int rows, int n, float *y)
{
    int r;
    for (r = 0; r < rows; r++)
        memcpy(y + r * n, x + (size_t)order[r] * (size_t)n, sizeof(float) * (size_t)n);
}

/* x (batch, N, heads * d) -> y (batch, heads, N, d) */
static void split_heads(const float *x, int batch, int tokens, int heads, int d, float *y)
{
    int k, h, t;
    for (k = 0; k < batch; k++)
        for (h = 0; h < heads; h++)
            for (t = 0; t < tokens; t++, y += d)
                memcpy(y, x + ((k * tokens + t) * heads + h) * d, sizeof(float) * (size_t)d);
}

/* x (batch, N, heads * d) -> y (batch, heads, d, N): also tokens as images */
static void split_heads_transposed(const float *x, int batch, int tokens, int heads, int d,
                                   float *y)
{
    int k, i, t;
    for (k = 0; k < batch; k++)
        for (i = 0; i < heads * d; i++)
            for (t = 0; t < tokens; t++)
                *y++ = x[(k * tokens + t) * heads * d + i];
}

/* x (batch, heads, N, d) -> y (batch, N, heads * d) */
static void merge_heads(const float *x, int batch, int tokens, int heads, int d, float *y)
{
    int k, h, t;
    for (k = 0; k < batch; k++)
        for (h = 0; h < heads; h++)
            for (t = 0; t < tokens; t++, x += d)
                memcpy(y + ((k * tokens + t) * heads + h) * d, x, sizeof(float) * (size_t)d);
}

/* channels begin to begin + n of each row of x (rows, all) */
static void split(const float *x, int rows, int all, int begin, int n, float *y)
{
    int r;
    for (r = 0; r < rows; r++)
        memcpy(y + r * n, x + r * all + begin, sizeof(float) * (size_t)n);
}

/* --- real layers. y is not x --- */

static void add_scaled(const float *x, float factor, int n, float *y)
{
    int i;
    for (i = 0; i < n; i++)
        y[i] += factor * x[i];
}

/* x (rows, I), weight (I, O): transposed, bias or NULL -> y (rows, O) */
static void linear(const float *x, const float *weight, const float *bias, int rows, int inputs,
                   int outputs, float *y)
{
    int r, i;
    for (r = 0; r < rows; r++, x += inputs, y += outputs) {
        memset(y, 0, sizeof(float) * (size_t)outputs);
        for (i = 0; i < inputs; i++)
            add_scaled(weight + i * outputs, x[i], outputs, y);
        if (bias != NULL)
            add(y, bias, outputs, y);
    }
}

/* image (channels, gh * p, gw * p), weight (channels * p * p, C): transposed */
static void patch_embed(const float *image, const float *weight, const float *bias, int channels,
                        int gh, int gw, int p, int n, float *y)
{
    int t, k, i, j;
    for (t = 0; t < gh * gw; t++, y += n) {
        const float *w = weight;
        memset(y, 0, sizeof(float) * (size_t)n);
        for (k = 0; k < channels; k++)
            for (i = 0; i < p; i++)
                for (j = 0; j < p; j++, w += n) {
                    const int row = t / gw * p + i, column = t % gw * p + j;
                    add_scaled(w, image[(k * gh * p + row) * gw * p + column], n, y);
                }
        add(y, bias, n, y);
    }
}

/* x (gh * gw, I), weight (9, I, O): places of the kernel row by row, 0 beyond the grid */
static void convolution(const float *x, const float *weight, const float *bias, int gh, int gw,
                        int inputs, int outputs, float *y)
{
    int t, k, i;
    for (t = 0; t < gh * gw; t++, y += outputs) {
        memset(y, 0, sizeof(float) * (size_t)outputs);
        for (k = 0; k < 9; k++) {
            const int row = t / gw + k / 3 - 1, column = t % gw + k % 3 - 1;
            if (row < 0 || row >= gh || column < 0 || column >= gw)
                continue;
            for (i = 0; i < inputs; i++)
                add_scaled(weight + (k * inputs + i) * outputs,
                           x[(row * gw + column) * inputs + i], outputs, y);
        }
        add(y, bias, outputs, y);
    }
}

/* a (batch, m, K), b (batch, n, K) -> y (batch, m, n) */
static void matmul(const float *a, const float *b, int batch, int m, int n, int length, float *y)
{
    int k, i, j;
    for (k = 0; k < batch; k++)
        for (i = 0; i < m; i++)
            for (j = 0; j < n; j++)
                *y++ = dot(a + (k * m + i) * length, b + (k * n + j) * length, length);
}

/* stage "none": y (batch, N, d) minus the sum of a row of prob times the token's own value */
static void minus_own(const float *prob, const float *value, int batch, int n, int d, float *y)
{
    int k, i, c;
    for (k = 0; k < batch; k++)
        for (i = 0; i < n; i++) {
            const float keys = sum(prob + (k * n + i) * n, n);
            for (c = 0; c < d; c++)
                *y++ -= keys * value[(k * d + c) * n + i];
        }
}

/* scores (windows, heads, M * M, M * M) and a table ((2M - 1)^2, heads) */
static void position_bias(const float *x, const float *table, int windows, int heads, int m,
                          float *y)
{
    int k, i, j;
    for (k = 0; k < windows * heads; k++)
        for (i = 0; i < m * m; i++)
            for (j = 0; j < m * m; j++) {
                const int down = i / m - j / m + m - 1, right = i % m - j % m + m - 1;
                *y++ = *x++ + table[(down * (2 * m - 1) + right) * heads + k % heads];
            }
}

static void mean_of_rows(const float *x, int rows, int n, float *y)
{
    int r;
    memset(y, 0, sizeof(float) * (size_t)n);
    for (r = 0; r < rows; r++)
        add(y, x + r * n, n, y);
    divide(y, n, (float)rows, y);
}

/* maps of h x w as maps of other sides: of each new row and column the two old ones, and how much
 * the second counts */
static void interpolate(const float *x, const uint32_t *rows, const float *row_share,
                        const uint32_t *columns, const float *column_share, int maps, int h, int w,
                        int new_h, int new_w, float *y)
{
    int k, i, j;
    for (k = 0; k < maps; k++, x += h * w)
        for (i = 0; i < new_h; i++) {
            const float *top = x + rows[2 * i] * (uint32_t)w;
            const float *bottom = x + rows[2 * i + 1] * (uint32_t)w;
            for (j = 0; j < new_w; j++) {
                const uint32_t a = columns[2 * j], b = columns[2 * j + 1];
                const float s = row_share[i], t = column_share[j];
                const float left = (1.0f - s) * top[a] + s * bottom[a];
                const float right = (1.0f - s) * top[b] + s * bottom[b];
                *y++ = (1.0f - t) * left + t * right;
            }
        }
}
