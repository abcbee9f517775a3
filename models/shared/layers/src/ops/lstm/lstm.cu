// Names and formulas are those of mod.rs. z, the gates and dz are (batch, time, 4 hidden), in the order i, f, g, o; outputs and
// cell states (batch, time, hidden). The cells are floats whatever T is.

FUNCTION float sigmoid(float x) {
    const float power = MATH(exp)(x < 0 ? x : -x);
    return x < 0 ? power / (1 + power) : 1 / (1 + power);
}

struct Cell {
    float i, f, g, o, c, h;
};

FUNCTION Cell cell(float i, float f, float g, float o, float c) {
    Cell now = {sigmoid(i), sigmoid(f), MATH(tanh)(g), sigmoid(o), 0, 0};
    now.c = now.f * c + now.i * now.g;
    now.h = now.o * MATH(tanh)(now.c);
    return now;
}

struct Gradient {
    float i, f, g, o, dc;
};

// From dh and dc at a step with cell state c to dz, and dc for the step before.
FUNCTION Gradient gradient(READ_POINTER(T) gates, uint hidden, float c, float before, float dh, float dc) {
    const float i = float(gates[0]), f = float(gates[hidden]);
    const float g = float(gates[2 * hidden]), o = float(gates[3 * hidden]), tanh_c = MATH(tanh)(c);
    dc += dh * o * (1 - tanh_c * tanh_c);
    const Gradient found = {dc * g * i * (1 - i), dc * before * f * (1 - f), dc * i * (1 - g * g),
                            dh * tanh_c * o * (1 - o), dc * f};
    return found;
}

// (rows, columns) to (columns, rows).
KERNEL(transposed, READ(T, x, 0), WRITE(T, y, 1), VALUE(uint, rows, 2), VALUE(uint, columns, 3)) {
    const uint at = GROUP.x * THREADS + THREAD;
    if (at < rows * columns)
        y[at % columns * rows + at / columns] = x[at];
}

// A whole sequence by a group, a unit by each thread; w: (hidden, 4 hidden). z is x W_ihᵀ and the biases, and becomes the gates.
KERNEL(lstm_forward, WRITE(T, z, 0), READ(T, w, 1), READ(T, h0, 2), READ(T, c0, 3), WRITE(T, y, 4),
       WRITE(float, cells, 5), WRITE(T, h_end, 6), WRITE(T, c_end, 7), VALUE(uint, time, 8), VALUE(uint, hidden, 9),
       VALUE(uint, stated, 10)) {
    SHARED(float, h, 256);
    const uint row = GROUP.x, u = THREAD;
    const bool is_unit = u < hidden;
    float c = stated && is_unit ? float(c0[row * hidden + u]) : 0, own = 0;
    if (is_unit)
        own = h[u] = stated ? float(h0[row * hidden + u]) : 0;
    BARRIER();
    for (uint t = 0; t < time; t++) {
        const uint step = row * time + t, gates = step * 4 * hidden + u;
        if (is_unit) {
            float sums[4];
            for (uint k = 0; k < 4; k++)
                sums[k] = float(z[gates + k * hidden]);
            for (uint k = 0; k < hidden; k++)
                for (uint gate = 0; gate < 4; gate++)
                    sums[gate] += h[k] * float(w[(4 * k + gate) * hidden + u]);
            const Cell now = cell(sums[0], sums[1], sums[2], sums[3], c);
            z[gates] = T(now.i);
            z[gates + hidden] = T(now.f);
            z[gates + 2 * hidden] = T(now.g);
            z[gates + 3 * hidden] = T(now.o);
            cells[step * hidden + u] = c = now.c;
            y[step * hidden + u] = T(own = now.h);
        }
        BARRIER();
        if (is_unit)
            h[u] = own;
        BARRIER();
    }
    if (is_unit) {
        h_end[row * hidden + u] = T(own);
        c_end[row * hidden + u] = T(c);
    }
}

// The same backwards; w_hh: (4 hidden, hidden). Gradients that are not there are zeros. before: h_{t-1} of every step.
KERNEL(lstm_backward, READ(T, gates, 0), READ(float, cells, 1), READ(T, y, 2), READ(T, w, 3), READ(T, h0, 4),
       READ(T, c0, 5), READ(T, dy, 6), READ(T, dh_end, 7), READ(T, dc_end, 8), WRITE(T, dz, 9), WRITE(T, before, 10),
       WRITE(T, dh0, 11), WRITE(T, dc0, 12), VALUE(uint, time, 13), VALUE(uint, hidden, 14), VALUE(uint, stated, 15),
       VALUE(uint, grads, 16)) {
    SHARED(float, dzs, 1024);
    const uint row = GROUP.x, u = THREAD;
    const bool is_unit = u < hidden;
    float dh = is_unit && (grads & 2) ? float(dh_end[row * hidden + u]) : 0;
    float dc = is_unit && (grads & 4) ? float(dc_end[row * hidden + u]) : 0;
    for (uint t = time; t-- > 0;) {
        const uint step = row * time + t, at = step * 4 * hidden + u;
        if (is_unit) {
            if (grads & 1)
                dh += float(dy[step * hidden + u]);
            const float first_c = stated ? float(c0[row * hidden + u]) : 0;
            const float first_h = stated ? float(h0[row * hidden + u]) : 0;
            const float c_before = t > 0 ? cells[(step - 1) * hidden + u] : first_c;
            before[step * hidden + u] = T(t > 0 ? float(y[(step - 1) * hidden + u]) : first_h);
            const Gradient found = gradient(gates + at, hidden, cells[step * hidden + u], c_before, dh, dc);
            dc = found.dc;
            dzs[u] = found.i;
            dzs[hidden + u] = found.f;
            dzs[2 * hidden + u] = found.g;
            dzs[3 * hidden + u] = found.o;
            for (uint k = 0; k < 4; k++)
                dz[at + k * hidden] = T(dzs[k * hidden + u]);
        }
        BARRIER();
        if (is_unit) {
            dh = 0;
            for (uint j = 0; j < 4 * hidden; j++)
                dh += dzs[j] * float(w[j * hidden + u]);
        }
        BARRIER();
    }
    if (is_unit) {
        dh0[row * hidden + u] = T(dh);
        dc0[row * hidden + u] = T(dc);
    }
}

// One step of all rows, a unit by each thread, for layers too wide for a group. recurrent: h_{t-1} W_hhᵀ (batch, 4 hidden), if
// there is any; c: (batch, hidden), and becomes c_t.
KERNEL(lstm_step, WRITE(T, z, 0), READ(T, recurrent, 1), WRITE(float, c, 2), WRITE(T, h, 3), WRITE(T, y, 4),
       WRITE(float, cells, 5), VALUE(uint, batch, 6), VALUE(uint, time, 7), VALUE(uint, hidden, 8), VALUE(uint, t, 9),
       VALUE(uint, with_recurrent, 10)) {
    const uint at = GROUP.x * THREADS + THREAD;
    if (at >= batch * hidden)
        return;
    const uint row = at / hidden, u = at % hidden, step = row * time + t, gates = step * 4 * hidden + u;
    float sums[4];
    for (uint k = 0; k < 4; k++)
        sums[k] = float(z[gates + k * hidden]) +
                  (with_recurrent ? float(recurrent[(4 * row + k) * hidden + u]) : 0);
    const Cell now = cell(sums[0], sums[1], sums[2], sums[3], c[at]);
    z[gates] = T(now.i);
    z[gates + hidden] = T(now.f);
    z[gates + 2 * hidden] = T(now.g);
    z[gates + 3 * hidden] = T(now.o);
    cells[step * hidden + u] = c[at] = now.c;
    h[at] = y[step * hidden + u] = T(now.h);
}

// The same backwards. recurrent: dz_{t+1} W_hh (batch, hidden), if there is any; dc, dh_end: (batch, hidden); step_dz: dz of this step,
// (batch, 4 hidden).
KERNEL(lstm_step_backward, READ(T, gates, 0), READ(float, cells, 1), READ(T, y, 2), READ(T, h0, 3), READ(T, c0, 4),
       READ(T, dy, 5), READ(T, recurrent, 6), WRITE(float, dc, 7), WRITE(T, dz, 8), WRITE(T, step_dz, 9),
       WRITE(T, before, 10), VALUE(uint, batch, 11), VALUE(uint, time, 12), VALUE(uint, hidden, 13), VALUE(uint, t, 14),
       VALUE(uint, stated, 15), VALUE(uint, with_recurrent, 16), VALUE(uint, with_dy, 17)) {
    const uint at = GROUP.x * THREADS + THREAD;
    if (at >= batch * hidden)
        return;
    const uint row = at / hidden, u = at % hidden, step = row * time + t, gate = step * 4 * hidden + u;
    float dh = with_recurrent ? float(recurrent[at]) : 0;
    if (with_dy)
        dh += float(dy[step * hidden + u]);
    const float c_before = t > 0 ? cells[(step - 1) * hidden + u] : stated ? float(c0[at]) : 0;
    before[step * hidden + u] = T(t > 0 ? float(y[(step - 1) * hidden + u]) : stated ? float(h0[at]) : 0);
    const Gradient found = gradient(gates + gate, hidden, cells[step * hidden + u], c_before, dh, dc[at]);
    dc[at] = found.dc;
    const float parts[4] = {found.i, found.f, found.g, found.o};
    for (uint k = 0; k < 4; k++)
        dz[gate + k * hidden] = step_dz[(4 * row + k) * hidden + u] = T(parts[k]);
}
