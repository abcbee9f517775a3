// A group a row of (b · t, c).

// sums: (3, rows): squared error, magnitude, squared difference to the row before.
KERNEL(sequence_loss_forward, READ(T, o, 0), READ(T, y, 1), WRITE(float, sums, 2), VALUE(uint, rows, 3),
       VALUE(uint, time, 4), VALUE(uint, width, 5)) {
    SUMS;
    const uint row = GROUP.x, first = row * width;
    // A sequence's first row is compared with itself.
    const uint before = row % time == 0 ? first : first - width;
    float error = 0, magnitude = 0, change = 0;
    for (uint i = THREAD; i < width; i += THREADS) {
        const float v = float(o[first + i]), e = v - float(y[first + i]), d = v - float(o[before + i]);
        error += e * e;
        magnitude += v < 0 ? -v : v;
        change += d * d;
    }
    error = group_sum(error);
    magnitude = group_sum(magnitude);
    change = group_sum(change);
    if (THREAD == 0) {
        sums[row] = error;
        sums[rows + row] = magnitude;
        sums[2 * rows + row] = change;
    }
}

KERNEL(sequence_loss_backward, READ(T, o, 0), READ(T, y, 1), READ(T, dloss, 2), WRITE(T, gradient, 3),
       VALUE(uint, rows, 4), VALUE(uint, time, 5), VALUE(uint, width, 6)) {
    const uint row = GROUP.x, first = row * width;
    const bool starts = row % time == 0, ends = row % time == time - 1;
    const float error = 2 * float(dloss[0]) / rows, magnitude = float(dloss[1]) / rows;
    const float change = 2 * float(dloss[2]) / rows;
    for (uint i = THREAD; i < width; i += THREADS) {
        const float v = float(o[first + i]);
        float g = error * (v - float(y[first + i]));
        g += v > 0 ? magnitude : v < 0 ? -magnitude : 0;
        if (!starts)
            g += change * (v - float(o[first - width + i]));
        if (!ends)
            g -= change * (float(o[first + width + i]) - v);
        gradient[first + i] = T(g);
    }
}

// Of the target.
KERNEL(sequence_loss_target, READ(T, o, 0), READ(T, y, 1), READ(T, dloss, 2), WRITE(T, gradient, 3), VALUE(uint, n, 4),
       VALUE(uint, rows, 5)) {
    const uint i = GROUP.x * THREADS + THREAD;
    if (i < n)
        gradient[i] = T(2 * float(dloss[0]) / rows * (float(y[i]) - float(o[i])));
}
