package org.edgeslm.core;

import java.util.ArrayList;
import java.util.Collection;
import java.util.List;
import java.util.Map;

/** A JSON object whose fields are asked for by kind: what is missing or of another kind is an IllegalArgumentException. */
public final class Fields {
    private final Map<?, ?> map;

    public Fields(Object value) {
        if (!(value instanceof Map)) throw new IllegalArgumentException("an object is missing");
        map = (Map<?, ?>) value;
    }

    private Object need(String name, Class<?> kind) {
        Object value = map.get(name);
        if (!kind.isInstance(value)) throw new IllegalArgumentException("'" + name + "' is missing or of another kind");
        return value;
    }

    public boolean has(String name) {
        return map.get(name) != null;
    }

    public Collection<String> names() {
        List<String> names = new ArrayList<String>();
        for (Object name : map.keySet()) names.add((String) name);
        return names;
    }

    public String text(String name) {
        return (String) need(name, String.class);
    }

    public boolean flag(String name) {
        return (Boolean) need(name, Boolean.class);
    }

    public double real(String name) {
        return ((Number) need(name, Number.class)).doubleValue();
    }

    /** Not negative. */
    public long size(String name) {
        long value = (Long) need(name, Long.class);
        if (value < 0) throw new IllegalArgumentException("'" + name + "' is negative");
        return value;
    }

    /** Not negative, and an int. */
    public int count(String name) {
        long value = size(name);
        if (value > Integer.MAX_VALUE) throw new IllegalArgumentException("'" + name + "' is too large");
        return (int) value;
    }

    public Fields object(String name) {
        return new Fields(need(name, Map.class));
    }

    public List<Fields> objects(String name) {
        List<Fields> found = new ArrayList<Fields>();
        for (Object item : (List<?>) need(name, List.class)) found.add(new Fields(item));
        return found;
    }

    public List<String> texts(String name) {
        List<String> found = new ArrayList<String>();
        for (Object item : (List<?>) need(name, List.class)) {
            if (!(item instanceof String)) throw new IllegalArgumentException("'" + name + "' holds something else");
            found.add((String) item);
        }
        return found;
    }

    public int[] counts(String name) {
        List<?> items = (List<?>) need(name, List.class);
        int[] found = new int[items.size()];
        for (int i = 0; i < found.length; i++) {
            Object item = items.get(i);
            if (!(item instanceof Long) || (Long) item < 0 || (Long) item > Integer.MAX_VALUE) {
                throw new IllegalArgumentException("'" + name + "' holds something else");
            }
            found[i] = ((Long) item).intValue();
        }
        return found;
    }
}
