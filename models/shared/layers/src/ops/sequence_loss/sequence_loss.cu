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

// The loss by its weights, and its three parts.
KERNEL(sequence_loss_total, READ(float, sums, 0), WRITE(T, all, 1), VALUE(uint, rows, 2), VALUE(float, w0, 3),
       VALUE(float, w1, 4), VALUE(float, w2, 5)) {
    SUMS;
    float parts[3];
    for (uint part = 0; part < 3; part++) {
        float sum = 0;
        for (uint row = THREAD; row < rows; row += THREADS)
            sum += sums[part * rows + row];
        parts[part] = group_sum(sum) / rows;
    }
    if (THREAD > 0)
        return;
    all[0] = T(w0 * parts[0] + w1 * parts[1] + w2 * parts[2]);
    for (uint part = 0; part < 3; part++)
        all[1 + part] = T(parts[part]);
}

KERNEL(sequence_loss_backward, READ(T, o, 0), READ(T, y, 1), READ(T, dloss, 2), WRITE(T, gradient, 3),
       VALUE(uint, rows, 4), VALUE(uint, time, 5), VALUE(uint, width, 6), VALUE(float, w0, 7), VALUE(float, w1, 8),
       VALUE(float, w2, 9)) {
    const uint row = GROUP.x, first = row * width;
    const bool starts = row % time == 0, ends = row % time == time - 1;
    const float total = float(dloss[0]);
    const float error = 2 * (total * w0 + float(dloss[1])) / rows;
    const float magnitude = (total * w1 + float(dloss[2])) / rows;
    const float change = 2 * (total * w2 + float(dloss[3])) / rows;
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
       VALUE(uint, rows, 5), VALUE(float, w0, 6)) {
    const uint i = GROUP.x * THREADS + THREAD;
    if (i < n)
        gradient[i] = T(2 * (float(dloss[0]) * w0 + float(dloss[1])) / rows * (float(y[i]) - float(o[i])));
}
