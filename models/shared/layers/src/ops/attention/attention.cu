// Attention in tiles of TILE queries by TILE keys, a head of at most D features: a group has 8 threads for each row of its
// tile, and they share the row's scores and features. Names and formulas are those of mod.rs.

struct Sizes {
    uint heads, tq, tk, d;
    // How far apart batches, heads and rows are: of queries and results, of keys and values, of the mask.
    uint q_batch, q_head, q_row;
    uint k_batch, k_head, k_row;
    uint m_batch, m_head, m_row;
    uint causal, masked;
    float scale;
    // Of the dropout on P; without it nothing lies below the threshold.
    uint threshold;
    float keep;
    uint step0, step1, key0, key1;
};

// Rows `first`.. of a head into shared memory, with zeros around them.
template <uint D, uint TILE>
FUNCTION void load(SHARED_POINTER(float) to, READ_POINTER(T) from, uint first, uint rows, uint row, uint d, uint self) {
    for (uint at = self; at < TILE * D; at += TILE * 8) {
        const uint r = at / D, e = at % D;
        to[r * (D + 1) + e] = first + r < rows && e < d ? float(from[(first + r) * row + e]) : 0.f;
    }
}

// a[0]·b[0] + … of two rows in shared memory.
template <uint D> FUNCTION float dot(SHARED_POINTER(const float) a, SHARED_POINTER(const float) b) {
    float sum = 0;
    for (uint e = 0; e < D; e++)
        sum += a[e] * b[e];
    return sum;
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

// How many keys the queries before `end` can see.
FUNCTION uint seen(Sizes g, uint end) {
    const uint last = end < g.tq ? end : g.tq;
    return g.causal ? last + g.tk - g.tq : g.tk;
}

template <uint D, uint TILE>
FUNCTION void forward(READ_POINTER(T) q, READ_POINTER(T) k, READ_POINTER(T) v, READ_POINTER(T) mask, WRITE_POINTER(T) o,
                      WRITE_POINTER(float) logs, Sizes g, SHARED_POINTER(float) qs, SHARED_POINTER(float) ks,
                      SHARED_POINTER(float) ps, uint self, uint block, uint head) {
    const uint of_q = head / g.heads * g.q_batch + head % g.heads * g.q_head;
    const uint of_k = head / g.heads * g.k_batch + head % g.heads * g.k_head;
    const uint of_m = head / g.heads * g.m_batch + head % g.heads * g.m_head;
    const uint r = self / 8, lane = self % 8, i = block * TILE + r;
    float largest = -INFINITY, sum = 0, result[D / 8];
    for (uint e = 0; e < D / 8; e++)
        result[e] = 0;
    load<D, TILE>(qs, q + of_q, block * TILE, g.tq, g.q_row, g.d, self);
    for (uint first = 0; first < seen(g, block * TILE + TILE); first += TILE) {
        BARRIER();
        load<D, TILE>(ks, k + of_k, first, g.tk, g.k_row, g.d, self);
        BARRIER();
        float s[TILE / 8], next = largest;
        for (uint c = 0; c < TILE / 8; c++) {
            const uint j = lane + 8 * c;
            s[c] = score(dot<D>(qs + r * (D + 1), ks + j * (D + 1)), mask + of_m, g, i, first + j);
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
        load<D, TILE>(ks, v + of_k, first, g.tk, g.k_row, g.d, self);
        BARRIER();
        for (uint e = 0; e < D / 8; e++) {
            float total = result[e] * correction;
            for (uint c = 0; c < TILE; c++)
                total += ps[r * (TILE + 1) + c] * ks[c * (D + 1) + lane + 8 * e];
            result[e] = total;
        }
    }
    if (i >= g.tq)
        return;
    for (uint e = 0; e < D / 8; e++)
        if (lane + 8 * e < g.d)
            o[of_q + i * g.q_row + lane + 8 * e] = T(sum == 0 ? 0 : result[e] / sum);
    // Where nothing is seen, exp(S - L) has to be nothing too.
    if (lane == 0)
        logs[head * g.tq + i] = sum == 0 ? INFINITY : largest + MATH(log)(sum);
}

// dQ of a tile of queries.
template <uint D, uint TILE>
FUNCTION void queries(READ_POINTER(T) q, READ_POINTER(T) k, READ_POINTER(T) v, READ_POINTER(T) mask,
                      READ_POINTER(T) grad, READ_POINTER(float) logs, READ_POINTER(float) dots, WRITE_POINTER(T) dq,
                      Sizes g, SHARED_POINTER(float) qs, SHARED_POINTER(float) ks, SHARED_POINTER(float) gs,
                      SHARED_POINTER(float) ps, uint self, uint block, uint head) {
    const uint of_q = head / g.heads * g.q_batch + head % g.heads * g.q_head;
    const uint of_k = head / g.heads * g.k_batch + head % g.heads * g.k_head;
    const uint of_m = head / g.heads * g.m_batch + head % g.heads * g.m_head;
    const uint r = self / 8, lane = self % 8, i = block * TILE + r;
    const float log = i < g.tq ? logs[head * g.tq + i] : INFINITY, mean = i < g.tq ? dots[head * g.tq + i] : 0;
    float result[D / 8];
    for (uint e = 0; e < D / 8; e++)
        result[e] = 0;
    load<D, TILE>(qs, q + of_q, block * TILE, g.tq, g.q_row, g.d, self);
    load<D, TILE>(gs, grad + of_q, block * TILE, g.tq, g.q_row, g.d, self);
    for (uint first = 0; first < seen(g, block * TILE + TILE); first += TILE) {
        BARRIER();
        load<D, TILE>(ks, v + of_k, first, g.tk, g.k_row, g.d, self);
        BARRIER();
        float dp[TILE / 8];
        for (uint c = 0; c < TILE / 8; c++)
            dp[c] = dot<D>(gs + r * (D + 1), ks + (lane + 8 * c) * (D + 1));
        BARRIER();
        load<D, TILE>(ks, k + of_k, first, g.tk, g.k_row, g.d, self);
        BARRIER();
        for (uint c = 0; c < TILE / 8; c++) {
            const uint j = lane + 8 * c;
            const float s = score(dot<D>(qs + r * (D + 1), ks + j * (D + 1)), mask + of_m, g, i, first + j);
            const float p = MATH(exp)(s - log);
            ps[r * (TILE + 1) + j] = p * (dp[c] * kept_share(g, head, i, first + j) - mean);
        }
        BARRIER();
        for (uint e = 0; e < D / 8; e++)
            for (uint c = 0; c < TILE; c++)
                result[e] += ps[r * (TILE + 1) + c] * ks[c * (D + 1) + lane + 8 * e];
    }
    for (uint e = 0; e < D / 8 && i < g.tq; e++)
        if (lane + 8 * e < g.d)
            dq[of_q + i * g.q_row + lane + 8 * e] = T(g.scale * result[e]);
}

// dK and dV of a tile of keys: here rows are keys, and queries pass by.
template <uint D, uint TILE>
FUNCTION void keys(READ_POINTER(T) q, READ_POINTER(T) k, READ_POINTER(T) v, READ_POINTER(T) mask, READ_POINTER(T) grad,
                   READ_POINTER(float) logs, READ_POINTER(float) dots, WRITE_POINTER(T) dk, WRITE_POINTER(T) dv, Sizes g,
                   SHARED_POINTER(float) qs, SHARED_POINTER(float) ks, SHARED_POINTER(float) vs,
                   SHARED_POINTER(float) ps, uint self, uint block, uint head) {
    const uint of_q = head / g.heads * g.q_batch + head % g.heads * g.q_head;
    const uint of_k = head / g.heads * g.k_batch + head % g.heads * g.k_head;
    const uint of_m = head / g.heads * g.m_batch + head % g.heads * g.m_head;
    const uint r = self / 8, lane = self % 8, j = block * TILE + r;
    float keys[D / 8], values[D / 8];
    for (uint e = 0; e < D / 8; e++)
        keys[e] = values[e] = 0;
    load<D, TILE>(ks, k + of_k, block * TILE, g.tk, g.k_row, g.d, self);
    load<D, TILE>(vs, v + of_k, block * TILE, g.tk, g.k_row, g.d, self);
    for (uint first = 0; first < g.tq; first += TILE) {
        // No query of this tile sees a key of the block.
        if (seen(g, first + TILE) <= block * TILE)
            continue;
        BARRIER();
        load<D, TILE>(qs, q + of_q, first, g.tq, g.q_row, g.d, self);
        BARRIER();
        float p[TILE / 8];
        for (uint c = 0; c < TILE / 8; c++) {
            const uint i = first + lane + 8 * c;
            const float s = score(dot<D>(ks + r * (D + 1), qs + (lane + 8 * c) * (D + 1)), mask + of_m, g, i, j);
            p[c] = i < g.tq ? MATH(exp)(s - logs[head * g.tq + i]) : 0;
            ps[r * (TILE + 1) + lane + 8 * c] = p[c] * kept_share(g, head, i, j);
        }
        BARRIER();
        load<D, TILE>(qs, grad + of_q, first, g.tq, g.q_row, g.d, self);
        BARRIER();
        for (uint e = 0; e < D / 8; e++)
            for (uint c = 0; c < TILE; c++)
                values[e] += ps[r * (TILE + 1) + c] * qs[c * (D + 1) + lane + 8 * e];
        for (uint c = 0; c < TILE / 8; c++) {
            const uint i = first + lane + 8 * c;
            const float dp = dot<D>(vs + r * (D + 1), qs + (lane + 8 * c) * (D + 1)) * kept_share(g, head, i, j);
            p[c] *= dp - (i < g.tq ? dots[head * g.tq + i] : 0);
        }
        BARRIER();
        for (uint c = 0; c < TILE / 8; c++)
            ps[r * (TILE + 1) + lane + 8 * c] = p[c];
        load<D, TILE>(qs, q + of_q, first, g.tq, g.q_row, g.d, self);
        BARRIER();
        for (uint e = 0; e < D / 8; e++)
            for (uint c = 0; c < TILE; c++)
                keys[e] += ps[r * (TILE + 1) + c] * qs[c * (D + 1) + lane + 8 * e];
    }
    for (uint e = 0; e < D / 8 && j < g.tk; e++)
        if (lane + 8 * e < g.d) {
            dk[of_k + j * g.k_row + lane + 8 * e] = T(g.scale * keys[e]);
            dv[of_k + j * g.k_row + lane + 8 * e] = T(values[e]);
        }
}

// D of mod.rs: dO · O, a row by 32 lanes.
KERNEL(attention_dots, READ(T, o, 0), READ(T, grad, 1), WRITE(float, dots, 2), VALUE(Sizes, g, 3)) {
    const uint i = GROUP.y, head = GROUP.x;
    const uint first = head / g.heads * g.q_batch + head % g.heads * g.q_head + i * g.q_row;
    float sum = 0;
    for (uint e = THREAD; e < g.d; e += THREADS)
        sum += float(o[first + e]) * float(grad[first + e]);
    sum = lane_sum(sum, THREAD);
    if (THREAD == 0)
        dots[head * g.tq + i] = sum;
}

#define HEAD(D, TILE)                                                                                                  \
    KERNEL(attention_forward_##D, READ(T, q, 0), READ(T, k, 1), READ(T, v, 2), READ(T, mask, 3), WRITE(T, o, 4),       \
           WRITE(float, logs, 5), VALUE(Sizes, g, 6)) {                                                                \
        SHARED(float, qs, TILE *(D + 1));                                                                              \
        SHARED(float, ks, TILE *(D + 1));                                                                              \
        SHARED(float, ps, TILE *(TILE + 1));                                                                           \
        forward<D, TILE>(q, k, v, mask, o, logs, g, qs, ks, ps, THREAD, GROUP.y, GROUP.x);                             \
    }                                                                                                                  \
    KERNEL(attention_queries_##D, READ(T, q, 0), READ(T, k, 1), READ(T, v, 2), READ(T, mask, 3), READ(T, grad, 4),     \
           READ(float, logs, 5), READ(float, dots, 6), WRITE(T, dq, 7), VALUE(Sizes, g, 8)) {                          \
        SHARED(float, qs, TILE *(D + 1));                                                                              \
        SHARED(float, ks, TILE *(D + 1));                                                                              \
        SHARED(float, gs, TILE *(D + 1));                                                                              \
        SHARED(float, ps, TILE *(TILE + 1));                                                                           \
        queries<D, TILE>(q, k, v, mask, grad, logs, dots, dq, g, qs, ks, gs, ps, THREAD, GROUP.y, GROUP.x);            \
    }                                                                                                                  \
    KERNEL(attention_keys_##D, READ(T, q, 0), READ(T, k, 1), READ(T, v, 2), READ(T, mask, 3), READ(T, grad, 4),        \
           READ(float, logs, 5), READ(float, dots, 6), WRITE(T, dk, 7), WRITE(T, dv, 8), VALUE(Sizes, g, 9)) {         \
        SHARED(float, qs, TILE *(D + 1));                                                                              \
        SHARED(float, ks, TILE *(D + 1));                                                                              \
        SHARED(float, vs, TILE *(D + 1));                                                                              \
        SHARED(float, ps, TILE *(TILE + 1));                                                                           \
        keys<D, TILE>(q, k, v, mask, grad, logs, dots, dk, dv, g, qs, ks, vs, ps, THREAD, GROUP.y, GROUP.x);           \
    }

// As much shared memory as Metal has, 32 KB, is enough for each.
HEAD(16, 32)
HEAD(32, 32)
HEAD(64, 32)
HEAD(128, 16)
