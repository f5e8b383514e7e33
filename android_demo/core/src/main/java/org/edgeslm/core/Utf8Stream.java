package org.edgeslm.core;

/**
 * Bytes to text as they come: a character whose last bytes are still to come is held back, and what can never become one
 * is shown as U+FFFD, one for each longest beginning of a character, as Unicode recommends (and Rust and Python do).
 */
public final class Utf8Stream {
    private static final char WRONG = '\ufffd';

    private int code;
    private int missing;
    private int low = 0x80;
    private int high = 0xbf;

    /** Text of `count` more bytes. */
    public String add(byte[] bytes, int count) {
        StringBuilder out = new StringBuilder(count);
        for (int i = 0; i < count; i++) one(bytes[i] & 0xff, out);
        return out.toString();
    }

    /** What is left when nothing follows. */
    public String end() {
        boolean open = missing > 0;
        missing = 0;
        return open ? String.valueOf(WRONG) : "";
    }

    /** Whether a character has begun and not ended. */
    public boolean isOpen() {
        return missing > 0;
    }

    private void one(int b, StringBuilder out) {
        if (missing > 0) {
            if (b >= low && b <= high) {
                code = code << 6 | b & 0x3f;
                low = 0x80;
                high = 0xbf;
                if (--missing == 0) out.appendCodePoint(code);
                return;
            }
            missing = 0;
            out.append(WRONG);
        }
        begin(b, out);
    }

    /** The first byte of a character; table 3-7 of the Unicode standard narrows the second one. */
    private void begin(int b, StringBuilder out) {
        low = b == 0xe0 ? 0xa0 : b == 0xf0 ? 0x90 : 0x80;
        high = b == 0xed ? 0x9f : b == 0xf4 ? 0x8f : 0xbf;
        if (b < 0x80) {
            out.append((char) b);
        } else if (b >= 0xc2 && b <= 0xdf) {
            expect(1, b & 0x1f);
        } else if (b >= 0xe0 && b <= 0xef) {
            expect(2, b & 0x0f);
        } else if (b >= 0xf0 && b <= 0xf4) {
            expect(3, b & 0x07);
        } else {
            out.append(WRONG);
        }
    }

    private void expect(int more, int bits) {
        missing = more;
        code = bits;
    }
}
