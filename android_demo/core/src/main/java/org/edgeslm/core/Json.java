package org.edgeslm.core;

import java.util.ArrayList;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;

/** JSON both ways: objects are Maps in order, arrays Lists, numbers Long or Double. Strict, and bounded in depth. */
public final class Json {
    private static final int DEEPEST = 64;

    private final String text;
    private int at;

    private Json(String text) {
        this.text = text;
    }

    /** @throws IllegalArgumentException for what is not exactly one JSON document */
    public static Object parse(String text) {
        Json json = new Json(text);
        Object value = json.value(0);
        json.blanks();
        if (json.at != text.length()) throw json.wrong("something follows the document");
        return value;
    }

    private IllegalArgumentException wrong(String what) {
        return new IllegalArgumentException(what + " at character " + at);
    }

    private void blanks() {
        while (at < text.length() && " \t\r\n".indexOf(text.charAt(at)) >= 0) at++;
    }

    private char next() {
        if (at >= text.length()) throw wrong("the document ends too early");
        return text.charAt(at++);
    }

    private boolean take(char wanted) {
        blanks();
        if (at < text.length() && text.charAt(at) == wanted) {
            at++;
            return true;
        }
        return false;
    }

    private void need(char wanted) {
        if (!take(wanted)) throw wrong("'" + wanted + "' is missing");
    }

    private Object value(int depth) {
        if (depth > DEEPEST) throw wrong("it is nested too deeply");
        blanks();
        char first = next();
        at--;
        switch (first) {
            case '{':
                return object(depth);
            case '[':
                return array(depth);
            case '"':
                return string();
            case 't':
                return word("true", Boolean.TRUE);
            case 'f':
                return word("false", Boolean.FALSE);
            case 'n':
                return word("null", null);
            default:
                return number();
        }
    }

    private Map<String, Object> object(int depth) {
        Map<String, Object> found = new LinkedHashMap<String, Object>();
        need('{');
        if (take('}')) return found;
        do {
            blanks();
            String key = string();
            need(':');
            if (found.containsKey(key)) throw wrong("a key stands twice");
            found.put(key, value(depth + 1));
        } while (take(','));
        need('}');
        return found;
    }

    private List<Object> array(int depth) {
        List<Object> found = new ArrayList<Object>();
        need('[');
        if (take(']')) return found;
        do {
            found.add(value(depth + 1));
        } while (take(','));
        need(']');
        return found;
    }

    private Object word(String word, Object value) {
        if (!text.startsWith(word, at)) throw wrong("an unknown word stands there");
        at += word.length();
        return value;
    }

    private String string() {
        if (next() != '"') throw wrong("a text is missing");
        StringBuilder found = new StringBuilder();
        while (true) {
            char c = next();
            if (c == '"') return found.toString();
            if (c < ' ') throw wrong("a control character stands in a text");
            found.append(c == '\\' ? escaped() : c);
        }
    }

    private char escaped() {
        char c = next();
        int plain = "\"\\/bfnrt".indexOf(c);
        if (plain >= 0) return "\"\\/\b\f\n\r\t".charAt(plain);
        if (c != 'u' || at + 4 > text.length()) throw wrong("an unknown escape stands in a text");
        int code = 0;
        for (int i = 0; i < 4; i++) {
            int digit = Character.digit(next(), 16);
            if (digit < 0) throw wrong("an unknown escape stands in a text");
            code = code * 16 + digit;
        }
        return (char) code;
    }

    private Object number() {
        int start = at;
        while (at < text.length() && "+-.0123456789eE".indexOf(text.charAt(at)) >= 0) at++;
        String digits = text.substring(start, at);
        try {
            if (digits.matches("-?(0|[1-9][0-9]*)")) return Long.valueOf(digits);
            if (digits.matches("-?(0|[1-9][0-9]*)(\\.[0-9]+)?([eE][+-]?[0-9]+)?")) return Double.valueOf(digits);
        } catch (NumberFormatException error) {
            throw wrong("a number is too large");
        }
        throw wrong("no value stands");
    }

    /** Maps, Lists, Strings, Numbers, Booleans and null as one line of JSON. */
    public static String write(Object value) {
        StringBuilder out = new StringBuilder();
        write(value, out);
        return out.toString();
    }

    private static void write(Object value, StringBuilder out) {
        if (value instanceof Map) {
            String before = "{";
            for (Map.Entry<?, ?> entry : ((Map<?, ?>) value).entrySet()) {
                out.append(before);
                quote(entry.getKey().toString(), out);
                out.append(": ");
                write(entry.getValue(), out);
                before = ", ";
            }
            out.append(before.equals("{") ? "{}" : "}");
        } else if (value instanceof List) {
            String before = "[";
            for (Object item : (List<?>) value) {
                out.append(before);
                write(item, out);
                before = ", ";
            }
            out.append(before.equals("[") ? "[]" : "]");
        } else if (value instanceof String) {
            quote((String) value, out);
        } else if (value instanceof Double && (((Double) value).isNaN() || ((Double) value).isInfinite())) {
            throw new IllegalArgumentException("JSON has no " + value);
        } else {
            out.append(value);
        }
    }

    private static void quote(String text, StringBuilder out) {
        out.append('"');
        for (int i = 0; i < text.length(); i++) {
            char c = text.charAt(i);
            int plain = "\"\\\b\f\n\r\t".indexOf(c);
            boolean alone = Character.isSurrogate(c) && !paired(text, i);
            if (plain >= 0) out.append('\\').append("\"\\bfnrt".charAt(plain));
            else if (c < ' ' || alone) out.append(String.format("\\u%04x", (int) c));
            else out.append(c);
        }
        out.append('"');
    }

    private static boolean paired(String text, int i) {
        if (Character.isHighSurrogate(text.charAt(i))) {
            return i + 1 < text.length() && Character.isLowSurrogate(text.charAt(i + 1));
        }
        return i > 0 && Character.isHighSurrogate(text.charAt(i - 1));
    }
}
