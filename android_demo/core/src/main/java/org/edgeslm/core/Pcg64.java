package org.edgeslm.core;

/**
 * numpy's `Generator(PCG64(seed)).random()`: the same seed draws the same numbers here, on the command line and in every
 * runtime. Sources: M. E. O'Neill, PCG (XSL-RR 128/64); numpy's SeedSequence, which spreads a seed over the state.
 */
final class Pcg64 {
    private static final long MULTIPLIER_HIGH = 0x2360ed051fc65da4L;
    private static final long MULTIPLIER_LOW = 0x4385df649fccf645L;

    private long high;
    private long low;
    private final long stepHigh;
    private final long stepLow;

    Pcg64(long seed) {
        long[] words = spread(seed);
        stepHigh = words[2] << 1 | words[3] >>> 63;
        stepLow = words[3] << 1 | 1;
        step();
        add(words[0], words[1]);
        step();
    }

    /** Uniform in [0, 1), 53 bits. */
    double next() {
        step();
        long mixed = Long.rotateRight(high ^ low, (int) (high >>> 58));
        return (mixed >>> 11) * 0x1.0p-53;
    }

    private void add(long otherHigh, long otherLow) {
        long sum = low + otherLow;
        boolean carried = sum + Long.MIN_VALUE < low + Long.MIN_VALUE; // unsigned: the sum wrapped around
        high += otherHigh + (carried ? 1 : 0);
        low = sum;
    }

    /** state = state * multiplier + step, modulo 2^128. */
    private void step() {
        high = high * MULTIPLIER_LOW + low * MULTIPLIER_HIGH + highProduct(low, MULTIPLIER_LOW);
        low *= MULTIPLIER_LOW;
        add(stepHigh, stepLow);
    }

    /** Upper 64 bits of an unsigned product. */
    private static long highProduct(long a, long b) {
        long a0 = a & 0xffffffffL;
        long a1 = a >>> 32;
        long b0 = b & 0xffffffffL;
        long b1 = b >>> 32;
        long middle = a1 * b0 + (a0 * b0 >>> 32);
        return a1 * b1 + (middle >>> 32) + ((middle & 0xffffffffL) + a0 * b1 >>> 32);
    }

    /** SeedSequence(seed).generate_state(4, uint64) for a seed of at most 63 bits. */
    private static long[] spread(long seed) {
        int[] pool = new int[4];
        int[] entropy = {(int) seed, (int) (seed >>> 32), 0, 0};
        int constant = 0x43b0d7e5;
        for (int i = 0; i < 4; i++) {
            int value = entropy[i] ^ constant;
            constant *= 0x931e8875;
            pool[i] = folded(value * constant);
        }
        for (int from = 0; from < 4; from++) {
            for (int to = 0; to < 4; to++) {
                if (from == to) continue;
                int value = pool[from] ^ constant;
                constant *= 0x931e8875;
                pool[to] = folded(0xca01f9dd * pool[to] - 0x4973f715 * folded(value * constant));
            }
        }
        long[] words = new long[4];
        constant = 0x8b51f9dd;
        for (int i = 0; i < 8; i++) {
            int value = pool[i % 4] ^ constant;
            constant *= 0x58f38ded;
            words[i / 2] |= (folded(value * constant) & 0xffffffffL) << 32 * (i % 2);
        }
        return words;
    }

    private static int folded(int value) {
        return value ^ value >>> 16;
    }
}
