// x and its gradient (b, s, c), weights (s), y and its gradient g (b, c).

KERNEL(pool_forward, READ(T, x, 0), READ(T, w, 1), WRITE(T, y, 2), VALUE(uint, n, 3), VALUE(uint, s, 4), VALUE(uint, c, 5)) {
    const uint i = GROUP.x * THREADS + THREAD;
    if (i >= n)
        return;
    float sum = 0;
    for (uint place = 0; place < s; place++)
        sum += float(w[place]) * float(x[(i / c * s + place) * c + i % c]);
    y[i] = T(sum);
}

KERNEL(pool_backward, READ(T, w, 0), READ(T, g, 1), WRITE(T, dx, 2), VALUE(uint, n, 3), VALUE(uint, s, 4), VALUE(uint, c, 5)) {
    const uint i = GROUP.x * THREADS + THREAD;
    if (i < n)
        dx[i] = T(float(w[i / c % s]) * float(g[i / (s * c) * c + i % c]));
}

// A group a place.
KERNEL(pool_weights, READ(T, x, 0), READ(T, g, 1), WRITE(T, dw, 2), VALUE(uint, b, 3), VALUE(uint, s, 4), VALUE(uint, c, 5)) {
    SUMS;
    float sum = 0;
    for (uint i = THREAD; i < b * c; i += THREADS)
        sum += float(x[(i / c * s + GROUP.x) * c + i % c]) * float(g[i]);
    sum = group_sum(sum);
    if (THREAD == 0)
        dw[GROUP.x] = T(sum);
}
