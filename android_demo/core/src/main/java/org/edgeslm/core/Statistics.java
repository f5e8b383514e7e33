package org.edgeslm.core;

import java.util.Arrays;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;

/** As edgeslm/measurement.py: linear interpolation between closest ranks. */
final class Statistics {
    private Statistics() {}

    static Map<String, Object> of(List<Object> values) {
        Map<String, Object> found = new LinkedHashMap<String, Object>();
        found.put("n", (long) values.size());
        found.put("median", percentile(values, 50));
        found.put("p10", percentile(values, 10));
        found.put("p90", percentile(values, 90));
        return found;
    }

    static double percentile(List<Object> values, double q) {
        double[] ordered = new double[values.size()];
        for (int i = 0; i < ordered.length; i++) ordered[i] = ((Number) values.get(i)).doubleValue();
        Arrays.sort(ordered);
        double position = (ordered.length - 1) * q / 100;
        int low = (int) position;
        int high = Math.min(low + 1, ordered.length - 1);
        return ordered[low] + (ordered[high] - ordered[low]) * (position - low);
    }
}
