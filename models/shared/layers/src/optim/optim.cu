// Formulas of mod.rs, each element by its own thread; several parameters a launch.

#define SETS 6

struct Update {
    // 0 Adam, 1 SGD, 2 RMSprop.
    uint rule;
    // Multiplies the gradient: the clipping factor.
    float scale;
    // p's factor (decoupled decay), and its share of the gradient (coupled decay).
    float keep, coupled;
    float lr;
    // Adam: decays of the moments with what is left to 1, √(1 - β₂ᵗ), ε. RMSprop: α and 1 - α as the second ones.
    float beta1, rest1, beta2, rest2, root_scale, eps;
    float momentum;
    uint nesterov;
    // Whether there is a momentum buffer.
    uint buffered;
    // Elements, and the first group that is not for this parameter.
    uint n, end;
};

struct Updates {
    Update of[SETS];
};

// a and b: Adam's moments, SGD's buffer, RMSprop's squares and buffer.
FUNCTION void moved(WRITE_POINTER(float) p, READ_POINTER(float) grad, WRITE_POINTER(float) a, WRITE_POINTER(float) b,
                    uint i, Update u) {
    const float g = grad[i] * u.scale + u.coupled * p[i];
    float direction = g;
    if (u.rule == 0) {
        a[i] = u.beta1 * a[i] + u.rest1 * g;
        b[i] = u.beta2 * b[i] + u.rest2 * g * g;
        p[i] = p[i] * u.keep - u.lr * a[i] / (MATH(sqrt)(b[i]) * u.root_scale + u.eps);
        return;
    }
    if (u.rule == 1 && u.buffered) {
        a[i] = u.momentum * a[i] + g;
        direction = u.nesterov ? g + u.momentum * a[i] : a[i];
    }
    if (u.rule == 2) {
        a[i] = u.beta2 * a[i] + u.rest2 * g * g;
        direction = g / (MATH(sqrt)(a[i]) + u.eps);
        if (u.buffered)
            direction = b[i] = u.momentum * b[i] + direction;
    }
    p[i] -= u.lr * direction;
}

KERNEL(update, WRITE(float, p0, 0), READ(float, g0, 1), WRITE(float, a0, 2), WRITE(float, b0, 3), WRITE(float, p1, 4),
       READ(float, g1, 5), WRITE(float, a1, 6), WRITE(float, b1, 7), WRITE(float, p2, 8), READ(float, g2, 9),
       WRITE(float, a2, 10), WRITE(float, b2, 11), WRITE(float, p3, 12), READ(float, g3, 13), WRITE(float, a3, 14),
       WRITE(float, b3, 15), WRITE(float, p4, 16), READ(float, g4, 17), WRITE(float, a4, 18), WRITE(float, b4, 19),
       WRITE(float, p5, 20), READ(float, g5, 21), WRITE(float, a5, 22), WRITE(float, b5, 23), VALUE(Updates, u, 24)) {
    uint set = 0;
    while (GROUP.x >= u.of[set].end)
        set++;
    const uint begin = set == 0 ? 0 : u.of[set - 1].end, i = (GROUP.x - begin) * THREADS + THREAD;
    if (i >= u.of[set].n)
        return;
    switch (set) {
    case 0: moved(p0, g0, a0, b0, i, u.of[0]); break;
    case 1: moved(p1, g1, a1, b1, i, u.of[1]); break;
    case 2: moved(p2, g2, a2, b2, i, u.of[2]); break;
    case 3: moved(p3, g3, a3, b3, i, u.of[3]); break;
    case 4: moved(p4, g4, a4, b4, i, u.of[4]); break;
    default: moved(p5, g5, a5, b5, i, u.of[5]);
    }
}

// y = keep · y + share · x.
KERNEL(blend, WRITE(float, y, 0), READ(float, x, 1), VALUE(uint, n, 2), VALUE(float, keep, 3), VALUE(float, share, 4)) {
    const uint i = GROUP.x * THREADS + THREAD;
    if (i < n)
        y[i] = keep * y[i] + share * x[i];
}

// Muon's momentum, and x, the direction to be made orthogonal.
KERNEL(muon_begin, READ(float, grad, 0), WRITE(float, buffer, 1), WRITE(float, x, 2), VALUE(uint, n, 3),
       VALUE(float, momentum, 4), VALUE(float, scale, 5)) {
    const uint i = GROUP.x * THREADS + THREAD;
    if (i >= n)
        return;
    const float g = grad[i] * scale;
    buffer[i] = momentum * buffer[i] + g;
    x[i] = g + momentum * buffer[i];
}

KERNEL(muon_normal, WRITE(float, x, 0), READ(float, squares, 1), VALUE(uint, n, 2)) {
    const uint i = GROUP.x * THREADS + THREAD;
    if (i < n)
        x[i] /= MATH(sqrt)(squares[0]) + 1e-7f;
}

#define NORMED 16

struct Squares {
    uint n[NORMED], end[NORMED];
    // Where the sums of this launch begin, and the elements of one.
    uint at, chunk;
};

FUNCTION float square_sum(READ_POINTER(T) x, uint first, uint end, uint self, uint threads) {
    float sum = 0;
    for (uint i = first + self; i < end; i += threads)
        sum += float(x[i]) * float(x[i]);
    return sum;
}

// parts[at + GROUP.x]: the sum of squares of a chunk of one of the tensors.
KERNEL(squares, READ(T, x0, 0), READ(T, x1, 1), READ(T, x2, 2), READ(T, x3, 3), READ(T, x4, 4), READ(T, x5, 5),
       READ(T, x6, 6), READ(T, x7, 7), READ(T, x8, 8), READ(T, x9, 9), READ(T, x10, 10), READ(T, x11, 11),
       READ(T, x12, 12), READ(T, x13, 13), READ(T, x14, 14), READ(T, x15, 15), WRITE(float, parts, 16),
       VALUE(Squares, s, 17)) {
    SUMS;
    uint set = 0;
    while (GROUP.x >= s.end[set])
        set++;
    const uint begin = set == 0 ? 0 : s.end[set - 1], first = (GROUP.x - begin) * s.chunk;
    const uint end = s.n[set] - first < s.chunk ? s.n[set] : first + s.chunk;
    float sum = 0;
    switch (set) {
    case 0: sum = square_sum(x0, first, end, THREAD, THREADS); break;
    case 1: sum = square_sum(x1, first, end, THREAD, THREADS); break;
    case 2: sum = square_sum(x2, first, end, THREAD, THREADS); break;
    case 3: sum = square_sum(x3, first, end, THREAD, THREADS); break;
    case 4: sum = square_sum(x4, first, end, THREAD, THREADS); break;
    case 5: sum = square_sum(x5, first, end, THREAD, THREADS); break;
    case 6: sum = square_sum(x6, first, end, THREAD, THREADS); break;
    case 7: sum = square_sum(x7, first, end, THREAD, THREADS); break;
    case 8: sum = square_sum(x8, first, end, THREAD, THREADS); break;
    case 9: sum = square_sum(x9, first, end, THREAD, THREADS); break;
    case 10: sum = square_sum(x10, first, end, THREAD, THREADS); break;
    case 11: sum = square_sum(x11, first, end, THREAD, THREADS); break;
    case 12: sum = square_sum(x12, first, end, THREAD, THREADS); break;
    case 13: sum = square_sum(x13, first, end, THREAD, THREADS); break;
    case 14: sum = square_sum(x14, first, end, THREAD, THREADS); break;
    default: sum = square_sum(x15, first, end, THREAD, THREADS);
    }
    sum = group_sum(sum);
    if (THREAD == 0)
        parts[s.at + GROUP.x] = sum;
}
