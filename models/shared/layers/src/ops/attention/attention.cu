// Attention in tiles of TILE queries by TILE keys, a head of at most D features: a group has 8 threads for each row of its
// tile, and they share the row's scores and features. Names and formulas are those of mod.rs.

struct Sizes {
    // `shared` heads of queries have their keys and values in common.
    uint heads, shared, tq, tk, d;
    // How far apart batches, heads and rows are: of queries, of keys and values, of results, of the mask.
    uint q_batch, q_head, q_row;
    uint k_batch, k_head, k_row;
    uint o_batch, o_head, o_row;
    uint m_batch, m_head, m_row;
    uint causal, masked;
    float scale;
    // Of the dropout on P; without it nothing lies below the threshold.
    uint threshold;
    float keep;
    uint step0, step1, key0, key1;
};

// Where a head of a batch begins in queries, in keys and values, in results, and in the mask.
struct Head {
    uint q, k, o, m;
};

FUNCTION Head begin(Sizes g, uint head) {
    const uint batch = head / g.heads, h = head % g.heads;
    Head of = {batch * g.q_batch + h * g.q_head, batch * g.k_batch + h / g.shared * g.k_head,
               batch * g.o_batch + h * g.o_head, batch * g.m_batch + h * g.m_head};
    return of;
}

// Rows `first`.. of a head into shared memory, with zeros around them.
template <uint D, uint TILE>
FUNCTION void load(SHARED_POINTER(float) to, READ_POINTER(T) from, uint first, uint rows, uint row, uint d, uint self) {
    for (uint at = self; at < TILE * D; at += TILE * 8) {
        const uint r = at / D, e = at % D;
        to[r * (D + 1) + e] = first + r < rows && e < d ? float(from[(first + r) * row + e]) : 0.f;
    }
}

// products[c] = a · row 8 c of those from `rows` on, all in shared memory: an element of a is read once for all of them.
template <uint D, uint N>
FUNCTION void dots(LOCAL_POINTER(float) products, SHARED_POINTER(const float) a, SHARED_POINTER(const float) rows) {
    for (uint c = 0; c < N; c++)
        products[c] = 0;
    for (uint e = 0; e < D; e++) {
        const float x = a[e];
        for (uint c = 0; c < N; c++)
            products[c] += x * rows[8 * c * (D + 1) + e];
    }
}

// result[e] += Σ_c weights[c] · column 8 e of row c.
template <uint D, uint ROWS>
FUNCTION void add_rows(LOCAL_POINTER(float) result, SHARED_POINTER(const float) weights,
                       SHARED_POINTER(const float) rows) {
    for (uint c = 0; c < ROWS; c++) {
        const float weight = weights[c];
        for (uint e = 0; e < D / 8; e++)
            result[e] += weight * rows[c * (D + 1) + 8 * e];
    }
}

// Over the 8 threads of a row.
FUNCTION float row_sum(float v, uint self) {
    for (uint mask = 4; mask > 0; mask /= 2)
        v += SHUFFLE_XOR(v, mask, self);
    return v;
}

FUNCTION float row_max(float v, uint self) {
    for (uint mask = 4; mask > 0; mask /= 2)
        v = larger(v, SHUFFLE_XOR(v, mask, self));
    return v;
}

// S of query i and key j from their product; -∞ where the query does not see the key or one of them is not there.
FUNCTION float score(float product, READ_POINTER(T) mask, Sizes g, uint i, uint j) {
    if (i >= g.tq || j >= g.tk || (g.causal && j > i + g.tk - g.tq))
        return -INFINITY;
    const float s = g.scale * product;
    return g.masked ? s + float(mask[i * g.m_row + j]) : s;
}

// What the dropout makes of a weight of 1.
FUNCTION float kept_share(Sizes g, uint head, uint i, uint j) {
    if (g.threshold == 0)
        return 1;
    const uint e = (head * g.tq + i) * g.tk + j;
    return kept(e, g.threshold, g.step0, g.step1, g.key0, g.key1) ? g.keep : 0;
}

// What a row's softmax divides by, as largest score and logarithm of a sum: added up, the sum would be lost beside a
// padding's -1e9.
struct Shift {
    float largest, log;
};

// Of query i; beyond the last one, and where nothing is seen, all weights are nothing.
FUNCTION Shift shift_of(READ_POINTER(float) logs, Sizes g, uint head, uint i) {
    const uint at = 2 * (head * g.tq + i);
    Shift nothing = {0, INFINITY};
    if (i >= g.tq)
        return nothing;
    Shift of_row = {logs[at], logs[at + 1]};
    return of_row;
}

FUNCTION void keep_shift(WRITE_POINTER(float) logs, Sizes g, uint head, uint i, float largest, float sum) {
    const uint at = 2 * (head * g.tq + i);
    logs[at] = sum == 0 ? 0 : largest;
    logs[at + 1] = sum == 0 ? INFINITY : MATH(log)(sum);
}

FUNCTION float weight(float score, Shift shift) {
    return MATH(exp)(score - shift.largest - shift.log);
}

// How many keys the queries before `end` can see.
FUNCTION uint seen(Sizes g, uint end) {
    const uint last = end < g.tq ? end : g.tq;
    return g.causal ? last + g.tk - g.tq : g.tk;
}

template <uint D, uint TILE>
FUNCTION void forward(READ_POINTER(T) q, READ_POINTER(T) k, READ_POINTER(T) v, READ_POINTER(T) mask, WRITE_POINTER(T) o,
                      WRITE_POINTER(float) logs, Sizes g, SHARED_POINTER(float) qs, SHARED_POINTER(float) ks,
                      SHARED_POINTER(float) ps, uint self, uint block, uint head) {
    const Head of = begin(g, head);
    const uint r = self / 8, lane = self % 8, i = block * TILE + r;
    float largest = -INFINITY, sum = 0, result[D / 8];
    for (uint e = 0; e < D / 8; e++)
        result[e] = 0;
    load<D, TILE>(qs, q + of.q, block * TILE, g.tq, g.q_row, g.d, self);
    for (uint first = 0; first < seen(g, block * TILE + TILE); first += TILE) {
        BARRIER();
        load<D, TILE>(ks, k + of.k, first, g.tk, g.k_row, g.d, self);
        BARRIER();
        float s[TILE / 8], next = largest;
        dots<D, TILE / 8>(s, qs + r * (D + 1), ks + lane * (D + 1));
        for (uint c = 0; c < TILE / 8; c++) {
            s[c] = score(s[c], mask + of.m, g, i, first + lane + 8 * c);
            next = larger(next, s[c]);
        }
        next = row_max(next, self);
        // A row that has seen nothing yet has nothing to correct.
        const float shift = next == -INFINITY ? 0 : next, correction = MATH(exp)(largest - shift);
        float part = 0;
        for (uint c = 0; c < TILE / 8; c++) {
            const uint j = lane + 8 * c;
            const float p = MATH(exp)(s[c] - shift);
            part += p;
            ps[r * (TILE + 1) + j] = p * kept_share(g, head, i, first + j);
        }
        sum = sum * correction + row_sum(part, self);
        largest = next;
        BARRIER();
        load<D, TILE>(ks, v + of.k, first, g.tk, g.k_row, g.d, self);
        BARRIER();
        for (uint e = 0; e < D / 8; e++)
            result[e] *= correction;
        add_rows<D, TILE>(result, ps + r * (TILE + 1), ks + lane);
    }
    if (i >= g.tq)
        return;
    for (uint e = 0; e < D / 8; e++)
        if (lane + 8 * e < g.d)
            o[of.o + i * g.o_row + lane + 8 * e] = T(sum == 0 ? 0 : result[e] / sum);
    if (lane == 0)
        keep_shift(logs, g, head, i, largest, sum);
}

// dQ of a tile of queries.
template <uint D, uint TILE>
FUNCTION void queries(READ_POINTER(T) q, READ_POINTER(T) k, READ_POINTER(T) v, READ_POINTER(T) mask,
                      READ_POINTER(T) grad, READ_POINTER(float) logs, READ_POINTER(float) means, WRITE_POINTER(T) dq,
                      Sizes g, SHARED_POINTER(float) qs, SHARED_POINTER(float) ks, SHARED_POINTER(float) gs,
                      SHARED_POINTER(float) ps, uint self, uint block, uint head) {
    const Head of = begin(g, head);
    const uint r = self / 8, lane = self % 8, i = block * TILE + r;
    const Shift shift = shift_of(logs, g, head, i);
    const float mean = i < g.tq ? means[head * g.tq + i] : 0;
    float result[D / 8];
    for (uint e = 0; e < D / 8; e++)
        result[e] = 0;
    load<D, TILE>(qs, q + of.q, block * TILE, g.tq, g.q_row, g.d, self);
    load<D, TILE>(gs, grad + of.o, block * TILE, g.tq, g.o_row, g.d, self);
    for (uint first = 0; first < seen(g, block * TILE + TILE); first += TILE) {
        BARRIER();
        load<D, TILE>(ks, v + of.k, first, g.tk, g.k_row, g.d, self);
        BARRIER();
        float dp[TILE / 8], s[TILE / 8];
        dots<D, TILE / 8>(dp, gs + r * (D + 1), ks + lane * (D + 1));
        BARRIER();
        load<D, TILE>(ks, k + of.k, first, g.tk, g.k_row, g.d, self);
        BARRIER();
        dots<D, TILE / 8>(s, qs + r * (D + 1), ks + lane * (D + 1));
        for (uint c = 0; c < TILE / 8; c++) {
            const uint j = lane + 8 * c;
            const float p = weight(score(s[c], mask + of.m, g, i, first + j), shift);
            ps[r * (TILE + 1) + j] = p * (dp[c] * kept_share(g, head, i, first + j) - mean);
        }
        BARRIER();
        add_rows<D, TILE>(result, ps + r * (TILE + 1), ks + lane);
    }
    for (uint e = 0; e < D / 8 && i < g.tq; e++)
        if (lane + 8 * e < g.d)
            dq[of.q + i * g.q_row + lane + 8 * e] = T(g.scale * result[e]);
}

// dK and dV of a tile of keys, `key_head` of all: here rows are keys, and the queries of the heads that share them pass by.
template <uint D, uint TILE>
FUNCTION void keys(READ_POINTER(T) q, READ_POINTER(T) k, READ_POINTER(T) v, READ_POINTER(T) mask, READ_POINTER(T) grad,
                   READ_POINTER(float) logs, READ_POINTER(float) means, WRITE_POINTER(T) dk, WRITE_POINTER(T) dv, Sizes g,
                   SHARED_POINTER(float) qs, SHARED_POINTER(float) ks, SHARED_POINTER(float) vs,
                   SHARED_POINTER(float) ps, uint self, uint block, uint key_head) {
    const uint begins = begin(g, key_head * g.shared).k;
    const uint r = self / 8, lane = self % 8, j = block * TILE + r;
    float keys[D / 8], values[D / 8];
    for (uint e = 0; e < D / 8; e++)
        keys[e] = values[e] = 0;
    load<D, TILE>(ks, k + begins, block * TILE, g.tk, g.k_row, g.d, self);
    load<D, TILE>(vs, v + begins, block * TILE, g.tk, g.k_row, g.d, self);
    for (uint head = key_head * g.shared; head < key_head * g.shared + g.shared; head++) {
        const Head of = begin(g, head);
        for (uint first = 0; first < g.tq; first += TILE) {
            // No query of this tile sees a key of the block.
            if (seen(g, first + TILE) <= block * TILE)
                continue;
            BARRIER();
            load<D, TILE>(qs, q + of.q, first, g.tq, g.q_row, g.d, self);
            BARRIER();
            float p[TILE / 8], dp[TILE / 8];
            dots<D, TILE / 8>(p, ks + r * (D + 1), qs + lane * (D + 1));
            for (uint c = 0; c < TILE / 8; c++) {
                const uint i = first + lane + 8 * c;
                p[c] = weight(score(p[c], mask + of.m, g, i, j), shift_of(logs, g, head, i));
                ps[r * (TILE + 1) + lane + 8 * c] = p[c] * kept_share(g, head, i, j);
            }
            BARRIER();
            load<D, TILE>(qs, grad + of.o, first, g.tq, g.o_row, g.d, self);
            BARRIER();
            add_rows<D, TILE>(values, ps + r * (TILE + 1), qs + lane);
            dots<D, TILE / 8>(dp, vs + r * (D + 1), qs + lane * (D + 1));
            for (uint c = 0; c < TILE / 8; c++) {
                const uint i = first + lane + 8 * c;
                p[c] *= dp[c] * kept_share(g, head, i, j) - (i < g.tq ? means[head * g.tq + i] : 0);
            }
            BARRIER();
            for (uint c = 0; c < TILE / 8; c++)
                ps[r * (TILE + 1) + lane + 8 * c] = p[c];
            load<D, TILE>(qs, q + of.q, first, g.tq, g.q_row, g.d, self);
            BARRIER();
            add_rows<D, TILE>(keys, ps + r * (TILE + 1), qs + lane);
        }
    }
    for (uint e = 0; e < D / 8 && j < g.tk; e++)
        if (lane + 8 * e < g.d) {
            dk[begins + j * g.k_row + lane + 8 * e] = T(g.scale * keys[e]);
            dv[begins + j * g.k_row + lane + 8 * e] = T(values[e]);
        }
}

// D of mod.rs: dO · O, a row by 32 lanes.
KERNEL(attention_dots, READ(T, o, 0), READ(T, grad, 1), WRITE(float, means, 2), VALUE(Sizes, g, 3)) {
    const uint i = GROUP.y, head = GROUP.x;
    const uint first = begin(g, head).o + i * g.o_row;
    float sum = 0;
    for (uint e = THREAD; e < g.d; e += THREADS)
        sum += float(o[first + e]) * float(grad[first + e]);
    sum = lane_sum(sum, THREAD);
    if (THREAD == 0)
        means[head * g.tq + i] = sum;
}

#ifdef TENSOR_CORES

// The same on tensor cores, for heads of a multiple of 8 features: each 32 lanes have 16 rows of their group's 64, and hold
// their products in registers, where a lane has 2 columns of every 8 of row lane / 4, and of the row 8 further.
#define LANES_ROWS 64

// A row of a head lies so far from the next in shared memory that 8 of them begin in different banks.
#define ROW(D) (D + 8)

// Rows `first`.. of a head into shared memory, with zeros around them.
template <uint D, uint ROWS>
FUNCTION void load_rows(SHARED_POINTER(T) to, READ_POINTER(T) from, uint first, uint rows, uint row, uint d,
                        uint self) {
    for (uint at = self; at < ROWS * (D / 8); at += 2 * LANES_ROWS) {
        const uint r = at / (D / 8), e = at % (D / 8) * 8;
        uint4 v = {0, 0, 0, 0};
        if (first + r < rows && e < d)
            v = *reinterpret_cast<const uint4 *>(from + (first + r) * row + e);
        *reinterpret_cast<uint4 *>(to + r * ROW(D) + e) = v;
    }
}

// The lanes' 16 rows of the group's from `first` on, as left factors of 16 columns each; by way of `tile`.
template <uint D>
FUNCTION void left(uint (&a)[D / 16][4], SHARED_POINTER(T) tile, READ_POINTER(T) from, uint first, uint rows, uint row,
                   uint d, uint self) {
    const uint lane = self % 32;
    load_rows<D, LANES_ROWS>(tile, from, first, rows, row, d, self);
    BARRIER();
    UNROLL
    for (uint k = 0; k < D / 16; k++)
        load_matrices<false>(a[k], tile + (self / 32 * 16 + lane % 16) * ROW(D) + k * 16 + lane / 16 * 8);
    BARRIER();
}

// products (16, N) = the lanes' rows · those in shared memory, transposed.
template <uint D, uint N>
FUNCTION void across(float (&products)[N / 8][4], const uint (&a)[D / 16][4], SHARED_POINTER(const T) rows, uint lane) {
    UNROLL
    for (uint n = 0; n < N / 16; n++) {
        float *c0 = products[2 * n], *c1 = products[2 * n + 1];
        UNROLL
        for (uint c = 0; c < 4; c++)
            c0[c] = c1[c] = 0;
        UNROLL
        for (uint k = 0; k < D / 16; k++) {
            uint b[4];
            load_matrices<false>(b, rows + (16 * n + lane % 8 + lane / 16 * 8) * ROW(D) + k * 16 + lane / 8 % 2 * 8);
            multiply(c0, a[k], b[0], b[1]);
            multiply(c1, a[k], b[2], b[3]);
        }
    }
}

// result (16, D) += weights (16, N) · the rows in shared memory.
template <uint D, uint N>
FUNCTION void along(float (&result)[D / 8][4], const float (&weights)[N / 8][4], SHARED_POINTER(const T) rows,
                    uint lane) {
    UNROLL
    for (uint k = 0; k < N / 16; k++) {
        const float *w0 = weights[2 * k], *w1 = weights[2 * k + 1];
        const uint a[4] = {pair(w0[0], w0[1]), pair(w0[2], w0[3]), pair(w1[0], w1[1]), pair(w1[2], w1[3])};
        UNROLL
        for (uint e = 0; e < D / 16; e++) {
            uint b[4];
            load_matrices<true>(b, rows + (16 * k + lane % 16) * ROW(D) + 16 * e + lane / 16 * 8);
            multiply(result[2 * e], a, b[0], b[1]);
            multiply(result[2 * e + 1], a, b[2], b[3]);
        }
    }
}

template <uint D> FUNCTION void zero(float (&result)[D / 8][4]) {
    UNROLL
    for (uint e = 0; e < D / 8; e++)
        UNROLL
        for (uint c = 0; c < 4; c++)
            result[e][c] = 0;
}

// factor[0] or factor[1] times the lane's two rows of a result, i[0] and i[1] of `rows`.
template <uint D>
FUNCTION void store(WRITE_POINTER(T) to, const float (&result)[D / 8][4], const float (&factor)[2], const uint (&i)[2],
                    uint rows, uint row, uint d, uint lane) {
    UNROLL
    for (uint e = 0; e < D / 8; e++)
        UNROLL
        for (uint h = 0; h < 2; h++)
            if (8 * e < d && i[h] < rows)
                *reinterpret_cast<uint *>(to + i[h] * row + 8 * e + lane % 4 * 2) =
                    pair(factor[h] * result[e][2 * h], factor[h] * result[e][2 * h + 1]);
}

// Over the 4 lanes of a row.
FUNCTION float quad_sum(float v, uint self) {
    v += SHUFFLE_XOR(v, 2, self);
    return v + SHUFFLE_XOR(v, 1, self);
}

FUNCTION float quad_max(float v, uint self) {
    v = larger(v, SHUFFLE_XOR(v, 2, self));
    return larger(v, SHUFFLE_XOR(v, 1, self));
}

#define KEYS 64

template <uint D>
FUNCTION void tensor_forward(READ_POINTER(T) q, READ_POINTER(T) k, READ_POINTER(T) v, READ_POINTER(T) mask,
                             WRITE_POINTER(T) o, WRITE_POINTER(float) logs, Sizes g, SHARED_POINTER(T) ks,
                             SHARED_POINTER(T) vs, uint self, uint block, uint head) {
    const Head of = begin(g, head);
    const uint lane = self % 32, row = block * LANES_ROWS + self / 32 * 16 + lane / 4, i[2] = {row, row + 8};
    uint a[D / 16][4];
    left<D>(a, ks, q + of.q, block * LANES_ROWS, g.tq, g.q_row, g.d, self);
    float largest[2] = {-INFINITY, -INFINITY}, sum[2] = {0, 0}, result[D / 8][4];
    zero<D>(result);
    for (uint first = 0; first < seen(g, block * LANES_ROWS + LANES_ROWS); first += KEYS) {
        BARRIER();
        load_rows<D, KEYS>(ks, k + of.k, first, g.tk, g.k_row, g.d, self);
        load_rows<D, KEYS>(vs, v + of.k, first, g.tk, g.k_row, g.d, self);
        BARRIER();
        float s[KEYS / 8][4], next[2] = {largest[0], largest[1]}, part[2] = {0, 0}, shift[2], correction[2];
        across<D, KEYS>(s, a, ks, lane);
        UNROLL
        for (uint n = 0; n < KEYS / 8; n++)
            UNROLL
            for (uint c = 0; c < 4; c++) {
                s[n][c] = score(s[n][c], mask + of.m, g, i[c / 2], first + 8 * n + lane % 4 * 2 + c % 2);
                next[c / 2] = larger(next[c / 2], s[n][c]);
            }
        UNROLL
        for (uint h = 0; h < 2; h++) {
            next[h] = quad_max(next[h], self);
            // A row that has seen nothing yet has nothing to correct.
            shift[h] = next[h] == -INFINITY ? 0 : next[h];
            correction[h] = MATH(exp)(largest[h] - shift[h]);
            largest[h] = next[h];
        }
        UNROLL
        for (uint n = 0; n < KEYS / 8; n++)
            UNROLL
            for (uint c = 0; c < 4; c++) {
                const float p = MATH(exp)(s[n][c] - shift[c / 2]);
                part[c / 2] += p;
                s[n][c] = p * kept_share(g, head, i[c / 2], first + 8 * n + lane % 4 * 2 + c % 2);
            }
        UNROLL
        for (uint h = 0; h < 2; h++)
            sum[h] = sum[h] * correction[h] + quad_sum(part[h], self);
        UNROLL
        for (uint e = 0; e < D / 8; e++)
            UNROLL
            for (uint c = 0; c < 4; c++)
                result[e][c] *= correction[c / 2];
        along<D, KEYS>(result, s, vs, lane);
    }
    const float factor[2] = {sum[0] == 0 ? 0 : 1 / sum[0], sum[1] == 0 ? 0 : 1 / sum[1]};
    store<D>(o + of.o, result, factor, i, g.tq, g.o_row, g.d, lane);
    UNROLL
    for (uint h = 0; h < 2; h++)
        if (lane % 4 == 0 && i[h] < g.tq)
            keep_shift(logs, g, head, i[h], largest[h], sum[h]);
}

// Keys, or queries, that pass by in the backward pass: two tiles of them hold one of LANES_ROWS, too.
#define PASSING (LANES_ROWS / 2)

template <uint D>
FUNCTION void tensor_queries(READ_POINTER(T) q, READ_POINTER(T) k, READ_POINTER(T) v, READ_POINTER(T) mask,
                             READ_POINTER(T) grad, READ_POINTER(float) logs, READ_POINTER(float) means,
                             WRITE_POINTER(T) dq, Sizes g, SHARED_POINTER(T) tiles, uint self, uint block, uint head) {
    const Head of = begin(g, head);
    const uint lane = self % 32, row = block * LANES_ROWS + self / 32 * 16 + lane / 4, i[2] = {row, row + 8};
    SHARED_POINTER(T) ks = tiles;
    SHARED_POINTER(T) vs = tiles + PASSING * ROW(D);
    uint of_queries[D / 16][4], of_grads[D / 16][4];
    left<D>(of_queries, tiles, q + of.q, block * LANES_ROWS, g.tq, g.q_row, g.d, self);
    left<D>(of_grads, tiles, grad + of.o, block * LANES_ROWS, g.tq, g.o_row, g.d, self);
    Shift shift[2];
    float mean[2], result[D / 8][4];
    UNROLL
    for (uint h = 0; h < 2; h++) {
        shift[h] = shift_of(logs, g, head, i[h]);
        mean[h] = i[h] < g.tq ? means[head * g.tq + i[h]] : 0;
    }
    zero<D>(result);
    for (uint first = 0; first < seen(g, block * LANES_ROWS + LANES_ROWS); first += PASSING) {
        BARRIER();
        load_rows<D, PASSING>(ks, k + of.k, first, g.tk, g.k_row, g.d, self);
        load_rows<D, PASSING>(vs, v + of.k, first, g.tk, g.k_row, g.d, self);
        BARRIER();
        float s[PASSING / 8][4], dp[PASSING / 8][4];
        across<D, PASSING>(s, of_queries, ks, lane);
        across<D, PASSING>(dp, of_grads, vs, lane);
        UNROLL
        for (uint n = 0; n < PASSING / 8; n++)
            UNROLL
            for (uint c = 0; c < 4; c++) {
                const uint j = first + 8 * n + lane % 4 * 2 + c % 2;
                const float p = weight(score(s[n][c], mask + of.m, g, i[c / 2], j), shift[c / 2]);
                s[n][c] = p * (dp[n][c] * kept_share(g, head, i[c / 2], j) - mean[c / 2]);
            }
        along<D, PASSING>(result, s, ks, lane);
    }
    const float factor[2] = {g.scale, g.scale};
    store<D>(dq + of.q, result, factor, i, g.tq, g.q_row, g.d, lane);
}

template <uint D>
FUNCTION void tensor_keys(READ_POINTER(T) q, READ_POINTER(T) k, READ_POINTER(T) v, READ_POINTER(T) mask,
                          READ_POINTER(T) grad, READ_POINTER(float) logs, READ_POINTER(float) means,
                          WRITE_POINTER(T) dk, WRITE_POINTER(T) dv, Sizes g, SHARED_POINTER(T) tiles, uint self,
                          uint block, uint key_head) {
    const uint begins = begin(g, key_head * g.shared).k;
    const uint lane = self % 32, row = block * LANES_ROWS + self / 32 * 16 + lane / 4, j[2] = {row, row + 8};
    // More would not fit into the registers.
    const uint N = D > 64 ? PASSING / 2 : PASSING;
    SHARED_POINTER(T) qs = tiles;
    SHARED_POINTER(T) gs = tiles + N * ROW(D);
    uint of_keys[D / 16][4], of_values[D / 16][4];
    left<D>(of_keys, tiles, k + begins, block * LANES_ROWS, g.tk, g.k_row, g.d, self);
    left<D>(of_values, tiles, v + begins, block * LANES_ROWS, g.tk, g.k_row, g.d, self);
    float keys[D / 8][4], values[D / 8][4];
    zero<D>(keys);
    zero<D>(values);
    for (uint head = key_head * g.shared; head < key_head * g.shared + g.shared; head++) {
        const Head of = begin(g, head);
        for (uint first = 0; first < g.tq; first += N) {
            // No query of this tile sees a key of the block.
            if (seen(g, first + N) <= block * LANES_ROWS)
                continue;
            BARRIER();
            load_rows<D, N>(qs, q + of.q, first, g.tq, g.q_row, g.d, self);
            load_rows<D, N>(gs, grad + of.o, first, g.tq, g.o_row, g.d, self);
            BARRIER();
            float p[N / 8][4], ds[N / 8][4];
            across<D, N>(p, of_keys, qs, lane);
            across<D, N>(ds, of_values, gs, lane);
            UNROLL
            for (uint n = 0; n < N / 8; n++)
                UNROLL
                for (uint c = 0; c < 4; c++) {
                    const uint i = first + 8 * n + lane % 4 * 2 + c % 2;
                    const float w = weight(score(p[n][c], mask + of.m, g, i, j[c / 2]), shift_of(logs, g, head, i));
                    const float share = kept_share(g, head, i, j[c / 2]), mean = i < g.tq ? means[head * g.tq + i] : 0;
                    p[n][c] = w * share;
                    ds[n][c] = w * (ds[n][c] * share - mean);
                }
            along<D, N>(values, p, gs, lane);
            along<D, N>(keys, ds, qs, lane);
        }
    }
    const float scale[2] = {g.scale, g.scale}, one[2] = {1, 1};
    store<D>(dk + begins, keys, scale, j, g.tk, g.k_row, g.d, lane);
    store<D>(dv + begins, values, one, j, g.tk, g.k_row, g.d, lane);
}

#define TENSOR_HEAD(D)                                                                                                 \
    KERNEL(attention_tensor_forward_##D, READ(T, q, 0), READ(T, k, 1), READ(T, v, 2), READ(T, mask, 3),                \
           WRITE(T, o, 4), WRITE(float, logs, 5), VALUE(Sizes, g, 6)) {                                                \
        SHARED(T, ks, KEYS *ROW(D));                                                                                   \
        SHARED(T, vs, KEYS *ROW(D));                                                                                   \
        tensor_forward<D>(q, k, v, mask, o, logs, g, ks, vs, THREAD, GROUP.y, GROUP.x);                                \
    }                                                                                                                  \
    KERNEL(attention_tensor_queries_##D, READ(T, q, 0), READ(T, k, 1), READ(T, v, 2), READ(T, mask, 3),                \
           READ(T, grad, 4), READ(float, logs, 5), READ(float, means, 6), WRITE(T, dq, 7), VALUE(Sizes, g, 8)) {        \
        SHARED(T, tiles, LANES_ROWS *ROW(D));                                                                          \
        tensor_queries<D>(q, k, v, mask, grad, logs, means, dq, g, tiles, THREAD, GROUP.y, GROUP.x);                    \
    }                                                                                                                  \
    KERNEL(attention_tensor_keys_##D, READ(T, q, 0), READ(T, k, 1), READ(T, v, 2), READ(T, mask, 3), READ(T, grad, 4), \
           READ(float, logs, 5), READ(float, means, 6), WRITE(T, dk, 7), WRITE(T, dv, 8), VALUE(Sizes, g, 9)) {         \
        SHARED(T, tiles, LANES_ROWS *ROW(D));                                                                          \
        tensor_keys<D>(q, k, v, mask, grad, logs, means, dk, dv, g, tiles, THREAD, GROUP.y, GROUP.x);                   \
    }

TENSOR_HEAD(16)
TENSOR_HEAD(32)
TENSOR_HEAD(64)
TENSOR_HEAD(128)

#endif

#define HEAD(D, TILE)                                                                                                  \
    KERNEL(attention_forward_##D, READ(T, q, 0), READ(T, k, 1), READ(T, v, 2), READ(T, mask, 3), WRITE(T, o, 4),       \
           WRITE(float, logs, 5), VALUE(Sizes, g, 6)) {                                                                \
        SHARED(float, qs, TILE *(D + 1));                                                                              \
        SHARED(float, ks, TILE *(D + 1));                                                                              \
        SHARED(float, ps, TILE *(TILE + 1));                                                                           \
        forward<D, TILE>(q, k, v, mask, o, logs, g, qs, ks, ps, THREAD, GROUP.y, GROUP.x);                             \
    }                                                                                                                  \
    KERNEL(attention_queries_##D, READ(T, q, 0), READ(T, k, 1), READ(T, v, 2), READ(T, mask, 3), READ(T, grad, 4),     \
           READ(float, logs, 5), READ(float, means, 6), WRITE(T, dq, 7), VALUE(Sizes, g, 8)) {                          \
        SHARED(float, qs, TILE *(D + 1));                                                                              \
        SHARED(float, ks, TILE *(D + 1));                                                                              \
        SHARED(float, gs, TILE *(D + 1));                                                                              \
        SHARED(float, ps, TILE *(TILE + 1));                                                                           \
        queries<D, TILE>(q, k, v, mask, grad, logs, means, dq, g, qs, ks, gs, ps, THREAD, GROUP.y, GROUP.x);            \
    }                                                                                                                  \
    KERNEL(attention_keys_##D, READ(T, q, 0), READ(T, k, 1), READ(T, v, 2), READ(T, mask, 3), READ(T, grad, 4),        \
           READ(float, logs, 5), READ(float, means, 6), WRITE(T, dk, 7), WRITE(T, dv, 8), VALUE(Sizes, g, 9)) {         \
        SHARED(float, qs, TILE *(D + 1));                                                                              \
        SHARED(float, ks, TILE *(D + 1));                                                                              \
        SHARED(float, vs, TILE *(D + 1));                                                                              \
        SHARED(float, ps, TILE *(TILE + 1));                                                                           \
        keys<D, TILE>(q, k, v, mask, grad, logs, means, dk, dv, g, qs, ks, vs, ps, THREAD, GROUP.y, GROUP.x);           \
    }

// As much shared memory as Metal has, 32 KB, is enough for each.
HEAD(16, 32)
HEAD(32, 32)
HEAD(64, 32)
HEAD(128, 16)
