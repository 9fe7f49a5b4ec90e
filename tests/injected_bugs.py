"""Wrong versions of the port in C. For each the comparison must name the operation that is wrong.

Each is a change of one place in tests/c_port/didb_block.c: the right text, which stands there once,
and the wrong one; then the tap where a comparison must see the first divergence, and how the cause
begins that it gives (None where there is none). The wrong operations of a port
in Python, backward ones above all, are in injected_bugs_python.py.

"H and V swapped" is not here: it cannot be seen. The network uses only the sum of the details,
(cH + cV) + cD, which stays the same to the bit. What does show is rows taken for columns (the grid
stored column by column), a detail with the wrong sign, or one taken twice.
"""

from __future__ import annotations

from typing import NamedTuple

TIE_FREE, ADVERSARIAL = "small_tie_free", "small_adversarial"


class InC(NamedTuple):
    right: str
    wrong: str
    tap: str  # below the block
    cause: str | None
    bundle: str = TIE_FREE


IN_C = {
    # bits
    "polarity: bit 1 is -1": InC(
        "value > threshold : value >= threshold",
        "value <= threshold : value < threshold",
        "attn.q_low.weight.bit", "polarity inverted",
    ),
    "bit order: most significant bit of a byte first": InC(
        "bit << i % 64", "bit << (i % 64 ^ 7)",
        "attn.q_low.weight.bit", "bit order reversed in every byte",
    ),
    "bit order: most significant bit of a word first": InC(
        "bit << i % 64", "bit << (63 - i % 64)",
        "attn.q_low.weight.bit", "bit order reversed in every 64-bit word",
    ),
    "byte swap: words written as on a big-endian machine": InC(
        "words[i / 8] >> 8 * (i % 8)", "words[i / 8] >> 8 * (7 - i % 8)",
        "attn.q_low.weight.bit", "bytes swapped in every 64-bit word",
    ),
    "word swap: the halves of 64 bits": InC(
        "words[i / 8] >> 8 * (i % 8)", "words[i / 8] >> 8 * (i % 8 ^ 4)",
        "attn.q_low.weight.bit", "words swapped, the 32-bit halves",
    ),
    "padding is 1": InC(
        "for (size_t i = 0; i < length; i++) {\n            float value = z[r * length + i];",
        "for (size_t i = 0; i < 64 * words; i++) {\n"
        "            float value = i < length ? z[r * length + i] : 1.0f;",
        "attn.q_low.weight.bit", "padding",
    ),
    "padding counted": InC(
        "return (int32_t)length - 2 * different;",
        "return (int32_t)(64 * words_for(length)) - 2 * different;",
        "attn.q_low.int", "padding counted",
    ),
    "the last word is left out": InC(
        "w < words_for(length); w++)\n        different",
        "w < length / 64; w++)\n        different",
        "attn.q_low.int", "the last 21 of 21 bits left out",
    ),
    "popcount without the factor 2": InC(
        "return (int32_t)length - 2 * different;", "return (int32_t)length - different;",
        "attn.q_low.int", "scale missing: the number of equal bits",
    ),
    "popcount of different bits is taken for the product": InC(
        "return (int32_t)length - 2 * different;", "return different;",
        "attn.q_low.int", "scale missing: popcount(a ^ w)",
    ),
    "boolean product as if its zeros were -1": InC(
        "product(dot_boolean,", "product(dot_signs,",
        "attn.context.int", "the boolean matrix taken as -1 and +1",
    ),
    "boolean product without - popcount(a)": InC(
        "return 2 * plus - all;", "return 2 * plus;",
        "attn.context.int", "boolean product without - popcount(a)",
    ),
    "sign(0) is -1": InC(
        "value > threshold : value >= threshold", "value > threshold : value > threshold",
        "attn.q_low.weight.bit", "sign of zero", ADVERSARIAL,
    ),
    "sign(-0.0) is -1": InC(
        "value > threshold : value >= threshold", "value > threshold : !signbit(value)",
        "attn.q_low.weight.bit", "sign of zero", ADVERSARIAL,
    ),
    "round half up: q = 1/2 gives 1": InC(
        "pack(q, heads * N, N, ABOVE, 0.5f, attn)", "pack(q, heads * N, N, AT_LEAST, 0.5f, attn)",
        "attn.prob.bit", "rounding half up", ADVERSARIAL,
    ),
    "the threshold of attention is 1": InC(
        "pack(q, heads * N, N, ABOVE, 0.5f, attn)", "pack(q, heads * N, N, ABOVE, 1.0f, attn)",
        "attn.prob.bit", "the threshold of attention is 1, not 1/2",
    ),
    # weights and the projection
    "weights not centred": InC(
        "= row[i] - mean;", "= row[i];",
        "attn.q_low.weight.z", "weights not centred",
    ),
    "the scale of a row is a sum, no mean": InC(
        "(*scale)[o] = size / (float)in;", "(*scale)[o] = size;",
        "attn.q_low.weight.scale", "scale is a sum of magnitudes, no mean",
    ),
    "missing move": InC(
        'vector(run, path, ".move", in)', "floats(in)",
        "attn.q_low.z", "blocks.0.attn.q_low.move left out",
    ),
    "missing move in front of the heads": InC(
        'vector(run, path, "_move", run->dim)', "floats(run->dim)",
        "attn.q_low.head_z", "blocks.0.attn.q_low_move left out",
    ),
    "a scale a token, not a channel": InC(
        "scale[i % out] *", "scale[i / out % out] *",
        "attn.q_low.linear", "a scale a token, not an output channel",
    ),
    "LayerNorm: eps of another network": InC(
        "variance + run->norm_eps", "variance + 1e-3f",
        "norm1.out", "norm_eps is 1e-05, the candidate seems to take 0.001",
    ),
    "LayerNorm: unbiased variance": InC(
        "variance /= (float)length;", "variance /= (float)(length - 1);",
        "norm1.out", "unbiased variance",
    ),
    "fit by repeat instead of tile": InC(
        "x[r * in + o % in]", "x[r * in + o / (out / in)]",
        "mlp.up.out", "fit by repeat instead of tile",
    ),
    "fit takes every O-th channel for a mean": InC(
        "x[r * in + o * group + i]", "x[r * in + o + i * out]",
        "mlp.down.out", "fit by means over channels O apart",
    ),
    "fit is a sum, no mean": InC(
        "y[r * out + o] = sum / (float)group;", "y[r * out + o] = sum;",
        "mlp.down.out", "fit is a sum, no mean",
    ),
    # RPReLU
    "RPReLU: slope on the wrong side": InC(
        "u > 0.0f ? u : slope[c] * u", "u > 0.0f ? slope[c] * u : u",
        "attn.q_low.out", "RPReLU's slope on the wrong side",
    ),
    "RPReLU: token shifts off by one": InC(
        "size_t token = r % run->tokens;", "size_t token = (r + 1) % run->tokens;",
        "attn.q_low.out", "off-by-one shift of the token shifts",
    ),
    "RPReLU: token shift on the wrong axis": InC(
        "- token_in[token];", "- token_in[c % run->tokens];",
        "attn.q_low.out", "token shifts on the wrong axis",
    ),
    "RPReLU: shift added in front": InC(
        "- shift_in[c]", "+ shift_in[c]",
        "attn.q_low.out", "RPReLU: + shift_in, not -",
    ),
    # Haar bands
    "Haar: norm 1/2 instead of 1/4": InC(
        "*low = 0.25f *", "*low = 0.5f *",
        "attn.low", "Haar norm: ortho instead of average",
    ),
    "Haar: H has the wrong sign": InC(
        "0.25f * ((x00 + x01) - (x10 + x11))", "0.25f * ((x10 + x11) - (x00 + x01))",
        "attn.high", "the H band has the wrong sign",
    ),
    "Haar: V twice and no H": InC(
        "*high = (rows + columns)", "*high = (columns + columns)",
        "attn.high", "H and V bands swapped: V taken twice",
    ),
    "Haar: periodic instead of edge": InC(
        "return run->periodic ? 0 : index;", "return 0;",
        "attn.low", "haar_mode",
    ),
    "Haar: the patch before instead of the next": InC(
        "if (index + 1 < count)\n        return index + 1;",
        "if (index > 0)\n        return index - 1;",
        "attn.low", "Haar off by one: the patch before, not the next",
    ),
    "Haar: class token left out of the high band": InC(
        "run->cls_low ? 0.0f : x[c];", "0.0f;",
        "attn.high", "class token left out",
    ),
    "the grid starts at the class token": InC(
        "x + (run->first + row * run->columns + column)", "x + (row * run->columns + column)",
        "attn.low", "the grid starts at the class token",
    ),
    "the grid is stored column by column": InC(
        "x + (run->first + row * run->columns + column)",
        "x + (run->first + row + column * run->rows)",
        "attn.low", "H and V bands swapped",
    ),
    "the high band's projections read the low band": InC(
        'similarity(run, attn, "_high", high, shortcuts)',
        'similarity(run, attn, "_high", low, shortcuts)',
        "attn.q_high.z", "blocks.0.attn.low read in the place of blocks.0.attn.high",
    ),
    # attention
    "heads transposed": InC(
        "size_t head = c / d, k = c % d;", "size_t head = c % run->heads, k = c / run->heads;",
        "attn.q_low.head_z", "heads transposed",
    ),
    "heads transposed on the way back": InC(
        "x[((b * run->heads + c / d) * N + n) * d + c % d]",
        "x[((b * run->heads + c % run->heads) * N + n) * d + c / run->heads]",
        "attn.norm.out", "heads transposed",
    ),
    "tokens of the heads off by one": InC(
        "= x[(b * N + n) * C + c];", "= x[(b * N + (n + 1) % N) * C + c];",
        "attn.q_low.head_z", "off-by-one shift",
    ),
    "values not transposed": InC(
        "(transposed ? k * N + n : n * d + k)", "(n * d + k)",
        "attn.v.head_z", "values not transposed",
    ),
    "missing 1/sqrt(d)": InC(
        "(first + second) / root", "(first + second)",
        "attn.scores", "scale missing: no division by sqrt(d)",
    ),
    "band weights swapped": InC(
        "float first = weight[head] * (float)by_low[i];\n"
        "            float second = weight[run->heads + head] *",
        "float first = weight[run->heads + head] * (float)by_low[i];\n"
        "            float second = weight[head] *",
        "attn.scores", "band weights of the two bands exchanged",
    ),
    "band weights taken as (heads, 2)": InC(
        "weight[run->heads + head]", "weight[2 * head + 1]",
        "attn.scores", "the high band's weight taken as (heads, 2)",
    ),
    "softmax over the queries": InC(
        "softmax(q, heads * N, N);",
        """for (size_t k = 0; k < heads * N; k++) {
        float *column = q + k / N * N * N + k % N, sum = 0.0f;
        for (size_t j = 0; j < N; j++)
            sum += expf(column[j * N]);
        for (size_t j = 0; j < N; j++)
            column[j * N] = expf(column[j * N]) / sum;
    }""",
        "attn.prob.z", "softmax over the queries",
    ),
    "probabilities times alpha": InC(
        "q[i] /= step", "q[i] *= step",
        "attn.prob.z", "probabilities times alpha, not divided by it",
    ),
    "context without alpha": InC(
        "context[i] = step[i / (N * d) % run->heads] *", "context[i] =",
        "attn.context", "scale missing: context without alpha",
    ),
    "shortcut of the keys forgotten": InC(
        "shortcuts[i] += m[i];", "shortcuts[i] += t == 0 ? m[i] : 0.0f;",
        "attn.out", "blocks.0.attn.k_low.out and blocks.0.attn.k_high.out left out",
    ),
    "neighbours: always eight": InC(
        "if (run->eight)", "",
        "attn.neighbour_mean", "neighbours is",
    ),
    "neighbours: the patch itself among them": InC(
        "if (row == i && column == j)\n                            continue;", "",
        "attn.neighbour_mean", "the patch itself among its neighbours",
    ),
    "neighbours: the four nearest": InC(
        "if (row == i && column == j)", "if ((row == i) == (column == j))",
        "attn.neighbour_mean", "the four nearest neighbours, not eight",
    ),
    "neighbours: weight has the wrong sign": InC(
        "own[i % C] * m[i] - around", "own[i % C] * m[i] + around",
        "attn.out", "the differential term: + the neighbours, not -",
    ),
    # the block
    "the MLP reads what is in front of its norm": InC(
        'projection(run, join(path, ".mlp.up", ""), n2,',
        'projection(run, join(path, ".mlp.up", ""), x,',
        "mlp.up.z", "blocks.0.mid read in the place of blocks.0.norm2.out",
    ),
    "shortcut around the attention forgotten": InC(
        "x[i] += alpha ?", "x[i] = alpha ?",
        "mid", "tokens left out",
    ),
    # words
    "OR in the place of XOR": InC(
        "popcount(a[w] ^ b[w])", "popcount(a[w] | b[w])",
        "attn.q_low.int", "another bit operation in the product: K - 2 popcount(a | w)",
    ),
    "AND in the place of XOR": InC(
        "popcount(a[w] ^ b[w])", "popcount(a[w] & b[w])",
        "attn.q_low.int", "another bit operation in the product: K - 2 popcount(a & w)",
    ),
    "XNOR in the place of XOR": InC(
        "popcount(a[w] ^ b[w])", "popcount(~(a[w] ^ b[w]))",
        "attn.q_low.int", "another bit operation in the product: K - 2 popcount(~(a ^ w)), the 43",
    ),
    "boolean product: OR in the place of AND": InC(
        "popcount(a[w] & v[w])", "popcount(a[w] | v[w])",
        "attn.context.int", "another bit operation in the product: 2 popcount(a | v) - popcount(a)",
    ),
    "boolean product: XNOR in the place of AND": InC(
        "popcount(a[w] & v[w])", "popcount(~(a[w] ^ v[w]))",
        "attn.context.int", "another bit operation in the product: 2 popcount(~(a ^ v)) - popcount",
    ),
}  # fmt: skip
