/* One small function an operation, as refimpl/ops has them; an export takes those that it calls.
 *
 * Arrays are row by row, C channels a row. A row of bits begins in a word of its own, least
 * significant bit first, padded with 0. Functions without `y` leave the result in the place of `x`.
 * Sums run in eight lanes, element i in lane i mod 8, which are then added in pairs.
 */

#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#define WORDS(n) (((n) + 63) / 64)
typedef uint64_t word;

#ifdef __GNUC__
#define OPERATION static __attribute__((noinline)) /* called often: small, and quick to compile */
#else
#define OPERATION static
#endif

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

/* a bit is 1 where x >= threshold */
static void pack(const float *x, float threshold, int n, word *bits)
{
    int i, j;
    for (i = 0; i < n; i += 64) {
        const int end = n - i < 64 ? n - i : 64;
        word w = 0;
        j = 0;
#ifdef POPCOUNT_AVX2
        for (; j + 8 <= end; j += 8) {
            const __m256 at_least =
                _mm256_cmp_ps(_mm256_loadu_ps(x + i + j), _mm256_set1_ps(threshold), _CMP_GE_OQ);
            w |= (word)(unsigned)_mm256_movemask_ps(at_least) << j;
        }
#endif
        for (; j < end; j++)
            w |= (word)(x[i + j] >= threshold) << j;
        bits[i / 64] = w;
    }
}

/* a bit is 1 where x + move >= 0 */
static void pack_moved(const float *restrict x, const float *restrict move, int n, word *bits)
{
    float z[64];
    int i, j;
    for (i = 0; i < n; i += 64) {
        const int end = n - i < 64 ? n - i : 64;
        for (j = 0; j < end; j++)
            z[j] = x[i + j] + move[i + j];
        pack(z, 0.0f, end, bits + i / 64);
    }
}

/* --- binary operations --- */

OPERATION void sign(const float *x, int rows, int n, word *bits)
{
    int r;
    for (r = 0; r < rows; r++)
        pack(x + r * n, 0.0f, n, bits + r * WORDS(n));
}

/* the signs of x (rows, n) + move */
OPERATION void sign_moved(const float *x, const float *move, int rows, int n, word *bits)
{
    int r;
    for (r = 0; r < rows; r++)
        pack_moved(x + r * n, move, n, bits + r * WORDS(n));
}

/* those of x (N, heads * d) + move as bits (heads, N, d) */
OPERATION void sign_heads(const float *x, const float *move, int tokens, int heads, int d,
                          word *bits)
{
    int h, t;
    for (h = 0; h < heads; h++)
        for (t = 0; t < tokens; t++, bits += WORDS(d))
            pack_moved(x + (t * heads + h) * d, move + h * d, d, bits);
}

/* and as bits (heads, d, N) */
OPERATION void sign_heads_transposed(const float *x, const float *move, int tokens, int heads,
                                     int d, word *bits)
{
    float z[64];
    int i, t, j;
    for (i = 0; i < heads * d; i++)
        for (t = 0; t < tokens; t += 64) {
            const int end = tokens - t < 64 ? tokens - t : 64;
            for (j = 0; j < end; j++)
                z[j] = x[(t + j) * heads * d + i] + move[i];
            pack(z, 0.0f, end, bits++);
        }
}

OPERATION void sign_values(float *x, int n) /* the signs as -1 and +1 */
{
    int i;
    for (i = 0; i < n; i++)
        x[i] = x[i] >= 0.0f ? 1.0f : -1.0f;
}

/* one row of bits times n others, word k of which are others[k * n] … others[k * n + n - 1] */
static void whole_numbers(const word *bits, const word *others, int length, int n, float *y)
{
    const int words = WORDS(length);
    int i = 0, k;
#ifdef POPCOUNT_AVX2
    const __m256i low_halves = _mm256_setr_epi32(0, 2, 4, 6, 0, 2, 4, 6);
    for (; i + 4 <= n; i += 4) {
        __m256i counts = _mm256_setzero_si256();
        __m128i count;
        for (k = 0; k < words; k++) {
            const __m256i four = _mm256_loadu_si256((const __m256i *)(others + k * n + i));
            const __m256i one = _mm256_set1_epi64x((long long)bits[k]);
            counts = _mm256_add_epi64(counts, ones_of_four(_mm256_xor_si256(four, one)));
        }
        count = _mm256_castsi256_si128(_mm256_permutevar8x32_epi32(counts, low_halves));
        count = _mm_sub_epi32(_mm_set1_epi32(length), _mm_slli_epi32(count, 1));
        _mm_storeu_ps(y + i, _mm_cvtepi32_ps(count));
    }
#endif
    for (; i < n; i++) {
        int count = 0;
        for (k = 0; k < words; k++)
            count += ones(bits[k] ^ others[k * n + i]);
        y[i] = (float)(length - 2 * count);
    }
}

/* bits (rows, I), weight by words (I / 64, O) -> y (rows, O) = scale * whole number; NULL is 1 */
OPERATION void binary_linear(const word *bits, const word *weight, const float *restrict scale,
                             int rows, int inputs, int outputs, float *restrict y)
{
    int r, o;
    for (r = 0; r < rows; r++, bits += WORDS(inputs), y += outputs) {
        whole_numbers(bits, weight, inputs, outputs, y);
        if (scale != NULL)
            for (o = 0; o < outputs; o++)
                y[o] *= scale[o];
    }
}

/* a (m, K), b (n, K) -> whole numbers y (m, n) */
OPERATION void binary_matmul(const word *a, const word *b, int m, int n, int length, float *y)
{
    const int words = WORDS(length);
    int i, j;
    for (i = 0; i < m; i++, a += words, y += n)
        if (words == 1)
            whole_numbers(a, b, length, n, y);
        else
            for (j = 0; j < n; j++)
                y[j] = (float)(length - 2 * differing(a, b + j * words, words));
}

OPERATION void above_half(const float *x, int rows, int n, word *bits)
{
    int r;
    for (r = 0; r < rows; r++) /* from the next float above 1/2 on */
        pack(x + r * n, 0.500000060f, n, bits + r * WORDS(n));
}

/* bits (N, N), value (d, N) -> y (N, d) = step * whole number;
 * differences: minus the number of keys times the token's own value */
OPERATION void boolean_attention(const word *bits, const word *value, float step, int n, int d,
                                 int differences, float *y)
{
    const int words = WORDS(n);
    int i, c;
    for (i = 0; i < n; i++, bits += words) {
        const int keys = common(bits, bits, words);
        for (c = 0; c < d; c++) {
            const word *v = value + c * words;
            int sum = 2 * common(bits, v, words) - keys;
            if (differences)
                sum -= (v[i / 64] >> (i % 64) & 1) ? keys : -keys;
            *y++ = (float)sum * step;
        }
    }
}

/* low * x + high * other over the root of d, of two weights */
OPERATION void band_sum(float *restrict x, const float *restrict other, float low, float high,
                        int n, float root)
{
    int i;
    for (i = 0; i < n; i++)
        x[i] = (low * x[i] + high * other[i]) / root;
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

OPERATION void layer_norm(float *restrict x, const float *restrict weight,
                          const float *restrict bias, int rows, int n, float eps)
{
    int r, i;
    for (r = 0; r < rows; r++, x += n) {
        const float mean = sum(x, n) / (float)n;
        float scale;
        for (i = 0; i < n; i++)
            x[i] -= mean;
        scale = 1.0f / sqrtf(dot(x, x, n) / (float)n + eps); /* one division a row */
        for (i = 0; i < n; i++)
            x[i] = x[i] * scale * weight[i] + bias[i];
    }
}

/* running statistics; std is the root of the variance + eps */
OPERATION void batch_norm(float *restrict x, const float *restrict weight,
                          const float *restrict bias, const float *restrict mean,
                          const float *restrict std, int rows, int n)
{
    int r, i;
    for (r = 0; r < rows; r++, x += n)
        for (i = 0; i < n; i++)
            x[i] = (x[i] - mean[i]) / std[i] * weight[i] + bias[i];
}

static float largest(const float *x, int n)
{
    float lane[8], most;
    int i, j;
    for (j = 0; j < 8; j++)
        lane[j] = x[j < n ? j : 0];
    for (i = 8; i + 8 <= n; i += 8)
        for (j = 0; j < 8; j++)
            lane[j] = x[i + j] > lane[j] ? x[i + j] : lane[j];
    for (most = lane[0], j = 1; j < 8; j++)
        most = lane[j] > most ? lane[j] : most;
    for (; i < n; i++)
        most = x[i] > most ? x[i] : most;
    return most;
}

/* exp(x - most), 0 where x - most < -104, to 2 units in the last place, the same on every machine:
 * 2^n exp(r), |r| <= ln(2) / 2 */
static void exponential(float *x, float most, int n)
{
    int i;
    for (i = 0; i < n; i++)
        x[i] = x[i] - most > -104.0f ? x[i] - most : -104.0f;
    for (i = 0; i < n; i++) {
        const int power = (int)(x[i] * 1.44269504f - 0.5f);
        const float r = (x[i] - (float)power * 0.693359375f) + (float)power * 2.12194440e-4f;
        /* in two steps: 2^n alone may be too small for a float */
        const uint32_t bits_a = (uint32_t)(127 + power / 2) << 23;
        const uint32_t bits_b = (uint32_t)(127 + power - power / 2) << 23;
        float a, b, p = 1.98756915e-4f;
        memcpy(&a, &bits_a, sizeof a);
        memcpy(&b, &bits_b, sizeof b);
        p = p * r + 1.39819995e-3f;
        p = p * r + 8.33345191e-3f;
        p = p * r + 4.16657959e-2f;
        p = p * r + 1.66666655e-1f;
        p = p * r + 5.00000012e-1f;
        x[i] = (p * (r * r) + r + 1.0f) * a * b;
    }
}

OPERATION void softmax(float *x, int rows, int n)
{
    int r, i;
    for (r = 0; r < rows; r++, x += n) {
        float total;
        exponential(x, largest(x, n), n);
        total = sum(x, n);
        for (i = 0; i < n; i++)
            x[i] /= total;
    }
}

/* only keys from the query's side of the roll */
OPERATION void window_softmax(float *x, const unsigned char *side, int n)
{
    int i, j;
    for (i = 0; i < n; i++, x += n) {
        float most = x[i], total;
        for (j = 0; j < n; j++)
            most = side[j] == side[i] && x[j] > most ? x[j] : most;
        for (j = 0; j < n; j++) /* those that are masked may be larger */
            x[j] = side[j] == side[i] ? x[j] : most;
        exponential(x, most, n);
        for (j = 0; j < n; j++)
            x[j] = side[j] == side[i] ? x[j] : 0.0f;
        total = sum(x, n);
        for (j = 0; j < n; j++)
            x[j] /= total;
    }
}

/* --- elements --- */

OPERATION void zero(float *x, int n)
{
    int i;
    for (i = 0; i < n; i++)
        x[i] = 0.0f;
}

OPERATION void add(float *restrict x, const float *restrict other, int n)
{
    int i;
    for (i = 0; i < n; i++)
        x[i] += other[i];
}

OPERATION void divide(float *x, int n, float divisor)
{
    int i;
    for (i = 0; i < n; i++)
        x[i] /= divisor;
}

OPERATION void rescale(float *x, int n, float factor)
{
    int i;
    for (i = 0; i < n; i++)
        x[i] *= factor;
}

OPERATION void gelu(float *x, int n)
{
    int i;
    for (i = 0; i < n; i++)
        x[i] *= 0.5f * (1.0f + erff(x[i] / 1.41421356f));
}

OPERATION void shift(const float *restrict x, const float *restrict move, int rows, int n,
                     float *restrict y)
{
    int r, i;
    for (r = 0; r < rows; r++, x += n, y += n)
        for (i = 0; i < n; i++)
            y[i] = x[i] + move[i];
}

/* the shortcut of a projection, x (rows, O) + fit(input (rows, I)), where O is a multiple of I */
OPERATION void add_repeated(float *restrict x, const float *restrict input, int rows, int inputs,
                            int outputs)
{
    int r, o, i;
    for (r = 0; r < rows; r++, input += inputs)
        for (o = 0; o < outputs; o += inputs, x += inputs)
            for (i = 0; i < inputs; i++)
                x[i] += input[i];
}

/* and where I is a multiple of O: means of channels that lie side by side */
OPERATION void add_means(float *restrict x, const float *restrict input, int rows, int inputs,
                         int outputs)
{
    const int each = inputs / outputs;
    int r, i;
    for (r = 0; r < rows * outputs; r++, input += each) {
        float total = input[0];
        for (i = 1; i < each; i++)
            total += input[i];
        x[r] += total / (float)each;
    }
}

OPERATION void layer_scale(float *restrict x, const float *restrict alpha,
                           const float *restrict beta, int rows, int n)
{
    int r, i;
    for (r = 0; r < rows; r++, x += n)
        for (i = 0; i < n; i++)
            x[i] = beta != NULL ? alpha[i] * x[i] + beta[i] : alpha[i] * x[i];
}

OPERATION void rprelu(float *restrict x, const float *restrict shift_in,
                      const float *restrict slope, const float *restrict shift_out, int rows,
                      int n)
{
    int r, i;
    for (r = 0; r < rows; r++, x += n)
        for (i = 0; i < n; i++) {
            const float u = x[i] - shift_in[i]; /* without a branch: one of two terms is 0 */
            x[i] = slope[i] * (u < 0.0f ? u : 0.0f) + (u > 0.0f ? u : 0.0f) + shift_out[i];
        }
}

/* the same with shifts a token */
OPERATION void rprelu_tokens(float *restrict x, const float *restrict shift_in,
                             const float *restrict slope, const float *restrict shift_out,
                             const float *restrict token_in, const float *restrict token_out,
                             int rows, int n)
{
    int r, i;
    for (r = 0; r < rows; r++, x += n) {
        const float in = token_in[r], out = token_out[r];
        for (i = 0; i < n; i++) {
            const float u = x[i] - shift_in[i] - in;
            x[i] = slope[i] * (u < 0.0f ? u : 0.0f) + (u > 0.0f ? u : 0.0f) + shift_out[i] + out;
        }
    }
}

/* of the mean x of the neighbours of each value */
OPERATION void differential(float *restrict x, const float *restrict value,
                            const float *restrict shortcut, const float *restrict neighbour,
                            int rows, int n)
{
    int r, i;
    for (r = 0; r < rows; r++, value += n, x += n)
        for (i = 0; i < n; i++)
            x[i] = shortcut[i] * value[i] - neighbour[i] * x[i];
}

/* --- the patch grid; `first` tokens stand in front of it --- */

/* Haar bands: the block of a token is itself, its right and lower neighbours */
OPERATION void bands(const float *x, int first, int gh, int gw, int n, int periodic, float *low,
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
OPERATION void neighbours(const float *x, int first, int gh, int gw, int n, int eight, float *y)
{
    int i, j, k, l;
    zero(y, (first + gh * gw) * n);
    x += first * n, y += first * n;
    for (i = 0; i < gh; i++)
        for (j = 0; j < gw; j++, y += n) {
            int count = 0;
            for (k = i > 0 ? i - 1 : 0; k <= i + 1 && k < gh; k++)
                for (l = j > 0 ? j - 1 : 0; l <= j + 1 && l < gw; l++)
                    if (k != i || l != j) {
                        add(y, x + (k * gw + l) * n, n);
                        count++;
                    }
            divide(y, n, eight || count == 0 ? 8.0f : (float)count);
        }
}

/* mean over `side` tokens along rows (axis 0) or columns (axis 1), 0 beyond the grid */
OPERATION void box(const float *x, int gh, int gw, int n, int side, int axis, float *y)
{
    const int length = axis == 0 ? gh : gw, step = axis == 0 ? gw : 1;
    int t, k;
    zero(y, gh * gw * n);
    for (t = 0; t < gh * gw; t++, y += n) {
        const int at = axis == 0 ? t / gw : t % gw;
        for (k = -(side / 2); k <= side / 2; k++)
            if (at + k >= 0 && at + k < length)
                add(y, x + (t + k * step) * n, n);
        divide(y, n, (float)side);
    }
}

/* --- places --- */

OPERATION void class_token(const float *x, const float *token, int rows, int n, float *y)
{
    memcpy(y, token, sizeof(float) * (size_t)n);
    memcpy(y + n, x, sizeof(float) * (size_t)(rows * n));
}

/* rows of x in another order: windows, and neighbours that are merged */
OPERATION void gather(const float *x, const uint32_t *order, int rows, int n, float *y)
{
    int r;
    for (r = 0; r < rows; r++)
        memcpy(y + r * n, x + (size_t)order[r] * (size_t)n, sizeof(float) * (size_t)n);
}

/* x (batch, N, heads * d) -> y (batch, heads, N, d) */
OPERATION void split_heads(const float *x, int batch, int tokens, int heads, int d, float *y)
{
    int k, h, t;
    for (k = 0; k < batch; k++)
        for (h = 0; h < heads; h++)
            for (t = 0; t < tokens; t++, y += d)
                memcpy(y, x + ((k * tokens + t) * heads + h) * d, sizeof(float) * (size_t)d);
}

/* x (batch, N, heads * d) -> y (batch, heads, d, N): also tokens as images */
OPERATION void split_heads_transposed(const float *x, int batch, int tokens, int heads, int d,
                                      float *y)
{
    int k, i, t;
    for (k = 0; k < batch; k++)
        for (i = 0; i < heads * d; i++)
            for (t = 0; t < tokens; t++)
                *y++ = x[(k * tokens + t) * heads * d + i];
}

/* x (batch, heads, N, d) -> y (batch, N, heads * d) */
OPERATION void merge_heads(const float *x, int batch, int tokens, int heads, int d, float *y)
{
    int k, h, t;
    for (k = 0; k < batch; k++)
        for (h = 0; h < heads; h++)
            for (t = 0; t < tokens; t++, x += d)
                memcpy(y + ((k * tokens + t) * heads + h) * d, x, sizeof(float) * (size_t)d);
}

/* channels begin to begin + n of each row of x (rows, all) */
OPERATION void split(const float *x, int rows, int all, int begin, int n, float *y)
{
    int r;
    for (r = 0; r < rows; r++)
        memcpy(y + r * n, x + r * all + begin, sizeof(float) * (size_t)n);
}

/* --- real layers --- */

static void add_scaled(float *restrict x, const float *restrict other, float factor, int n)
{
    int i;
    for (i = 0; i < n; i++)
        x[i] += factor * other[i];
}

/* x (rows, I), weight (I, O): transposed, bias or NULL -> y (rows, O) */
OPERATION void linear(const float *x, const float *weight, const float *bias, int rows, int inputs,
                      int outputs, float *y)
{
    int r, i;
    for (r = 0; r < rows; r++, x += inputs, y += outputs) {
        if (bias != NULL)
            memcpy(y, bias, sizeof(float) * (size_t)outputs);
        else
            zero(y, outputs);
        for (i = 0; i < inputs; i++)
            add_scaled(y, weight + i * outputs, x[i], outputs);
    }
}

/* image (channels, gh * p, gw * p), weight (channels * p * p, C): transposed */
OPERATION void patch_embed(const float *image, const float *weight, const float *bias, int channels,
                           int gh, int gw, int p, int n, float *y)
{
    int t, k, i, j;
    for (t = 0; t < gh * gw; t++, y += n) {
        const float *w = weight;
        memcpy(y, bias, sizeof(float) * (size_t)n);
        for (k = 0; k < channels; k++)
            for (i = 0; i < p; i++)
                for (j = 0; j < p; j++, w += n) {
                    const int row = t / gw * p + i, column = t % gw * p + j;
                    add_scaled(y, w, image[(k * gh * p + row) * gw * p + column], n);
                }
    }
}

/* x (gh * gw, I), weight (9, I, O): places of the kernel row by row, 0 beyond the grid */
OPERATION void convolution(const float *x, const float *weight, const float *bias, int gh, int gw,
                           int inputs, int outputs, float *y)
{
    int t, k, i;
    for (t = 0; t < gh * gw; t++, y += outputs) {
        memcpy(y, bias, sizeof(float) * (size_t)outputs);
        for (k = 0; k < 9; k++) {
            const int row = t / gw + k / 3 - 1, column = t % gw + k % 3 - 1;
            if (row < 0 || row >= gh || column < 0 || column >= gw)
                continue;
            for (i = 0; i < inputs; i++)
                add_scaled(y, weight + (k * inputs + i) * outputs,
                           x[(row * gw + column) * inputs + i], outputs);
        }
    }
}

/* a (m, K), b (n, K) -> y (m, n) */
OPERATION void matmul(const float *a, const float *b, int m, int n, int length, float *y)
{
    int i, j;
    for (i = 0; i < m; i++)
        for (j = 0; j < n; j++)
            *y++ = dot(a + i * length, b + j * length, length);
}

/* stage "none": x (N, d) minus the sum of a row of prob times the token's own value */
OPERATION void minus_own(float *restrict x, const float *restrict prob,
                         const float *restrict value, int n, int d)
{
    int i, c;
    for (i = 0; i < n; i++) {
        const float keys = sum(prob + i * n, n);
        for (c = 0; c < d; c++)
            *x++ -= keys * value[c * n + i];
    }
}

/* scores (M * M, M * M), and of a table ((2M - 1)^2, heads) the column of the head */
OPERATION void position_bias(float *restrict x, const float *restrict column, int heads, int m)
{
    int i, j;
    for (i = 0; i < m * m; i++)
        for (j = 0; j < m * m; j++) {
            const int down = i / m - j / m + m - 1, right = i % m - j % m + m - 1;
            *x++ += column[(down * (2 * m - 1) + right) * heads];
        }
}

OPERATION void mean_of_rows(const float *x, int rows, int n, float *y)
{
    int r;
    memcpy(y, x, sizeof(float) * (size_t)n);
    for (r = 1; r < rows; r++)
        add(y, x + r * n, n);
    divide(y, n, (float)rows);
}

/* maps of h x w as maps of other sides: of each new row and column the two old ones, and how much
 * the second counts */
OPERATION void interpolate(const float *x, const uint32_t *rows, const float *row_share,
                           const uint32_t *columns, const float *column_share, int maps, int h,
                           int w, int new_h, int new_w, float *y)
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
