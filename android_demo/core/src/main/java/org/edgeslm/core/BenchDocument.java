package org.edgeslm.core;

import java.util.ArrayList;
import java.util.Arrays;
import java.util.Collections;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;

/** A benchmark as the document that `edgeslm bench --json` prints (schema 2) and `edgeslm report --add` reads. */
public final class BenchDocument {
    public static final int SCHEMA = 2;
    private static final String[][] MEMORY = {
        {"rss_anon", "rss_anon_peak"}, {"rss_file", "rss_file_peak"}, {"pss", "pss_peak"}, {"vm_hwm", "vm_hwm"},
        {"vm_swap", "swap_peak"}
    };

    /** One figure for a person: metric as in the document, median of its values. */
    public static final class Figure {
        public final String metric;
        public final String unit;
        public final double median;

        Figure(String metric, String unit, double median) {
            this.metric = metric;
            this.unit = unit;
            this.median = median;
        }
    }

    private final List<Object> measurements = new ArrayList<Object>();
    private final List<Figure> figures = new ArrayList<Figure>();
    private final Map<String, Object> where = new LinkedHashMap<String, Object>();
    private final Manifest manifest;
    private final String doubt;

    /** `version` is that of the runtime, `device` from Device.facts. */
    public BenchDocument(Bench bench, Bench.Result result, Manifest manifest, Map<String, Object> device, String version,
            int threads) {
        this.manifest = manifest;
        doubt = result.steady ? "" : "1 of 1 processes were not steady when their warm-up ended";
        where.put("device", device);
        where.put("runtime", "llama.cpp");
        where.put("runtime_version", version);
        where.put("artifact", manifest.modelFile);
        where.put("artifact_sha256", manifest.modelSha256);
        where.put("artifact_format", "gguf");
        where.put("job", bench.job(threads));
        where.put("threads", (long) threads);
        where.put("temperature_c", null);
        add("load", "s", list(result.loadSeconds), none(), "lower", "in the app's own process; the file may be in page cache", extra());
        Map<String, Object> prompt = extra("prompt_tokens", bench.prefill());
        add("time_to_first_token", "s", prefill(result.runs, 0), prefill(result.warmups, 0), "lower", "", prompt);
        add("prefill", "tokens/s", prefill(result.runs, bench.prefill()), prefill(result.warmups, bench.prefill()), "higher", "", prompt);
        Map<String, Object> depth = extra("new_tokens", bench.fresh());
        depth.put("depth", (long) bench.prefill());
        add("decode", "tokens/s", decode(result.runs, bench.fresh()), decode(result.warmups, bench.fresh()), "higher", "", depth);
        add("token_latency", "s", latencies(result.runs), latencies(result.warmups), "lower", "", extra("depth", bench.prefill()));
        memory(result);
    }

    private void memory(Bench.Result result) {
        Long swap = peak(result, "vm_swap");
        for (String[] field : MEMORY) {
            Long peak = peak(result, field[0]);
            if (peak == null) continue; // a field that the kernel does not give is no figure
            Map<String, Object> extra = extra();
            extra.put("before_load_bytes", Collections.<Object>singletonList(result.before.get(field[0])));
            if (!field[0].equals("vm_swap")) extra.put("swap_peak_bytes", swap);
            String note = swap == null || swap == 0 ? ""
                    : swap + " bytes were in swap, so what is resident is not all there was";
            add(field[1], "bytes", list((double) peak), none(), "lower", note, extra);
        }
    }

    private static Long peak(Bench.Result result, String field) {
        Long peak = null;
        for (Map<String, Long> sample : result.memory) {
            Long value = sample.get(field);
            if (value != null && (peak == null || value > peak)) peak = value;
        }
        return peak;
    }

    private static Map<String, Object> extra() {
        return new LinkedHashMap<String, Object>();
    }

    private static Map<String, Object> extra(String key, int value) {
        Map<String, Object> extra = extra();
        extra.put(key, (long) value);
        return extra;
    }

    private static List<Object> list(double value) {
        return new ArrayList<Object>(Collections.<Object>singletonList(value));
    }

    private static List<Object> none() {
        return new ArrayList<Object>();
    }

    /** Seconds of each prefill, or tokens a second where `tokens` is not 0. */
    private static List<Object> prefill(List<Bench.Round> rounds, int tokens) {
        List<Object> found = none();
        for (Bench.Round round : rounds) found.add(tokens == 0 ? round.prefillSeconds : tokens / round.prefillSeconds);
        return found;
    }

    private static List<Object> decode(List<Bench.Round> rounds, int tokens) {
        List<Object> found = none();
        for (Bench.Round round : rounds) found.add(tokens / round.decodeSeconds);
        return found;
    }

    private static List<Object> latencies(List<Bench.Round> rounds) {
        List<Object> found = none();
        for (Bench.Round round : rounds) for (double latency : round.latencies) found.add(latency);
        return found;
    }

    private void add(String metric, String unit, List<Object> values, List<Object> warmups, String better, String note,
            Map<String, Object> extra) {
        boolean timed = !unit.equals("bytes");
        Map<String, Object> more = new LinkedHashMap<String, Object>(extra);
        more.put("processes", 1L);
        Map<String, Object> measurement = new LinkedHashMap<String, Object>();
        measurement.put("metric", metric);
        measurement.put("unit", unit);
        measurement.put("values", values);
        measurement.put("where", where);
        measurement.put("warmups", warmups);
        measurement.put("kind", "measured");
        measurement.put("covers", "process");
        measurement.put("better", better);
        measurement.put("note", timed && !doubt.isEmpty() ? (note.isEmpty() ? doubt : note + "; " + doubt) : note);
        measurement.put("extra", more);
        measurement.put("statistics", Statistics.of(values));
        measurements.add(measurement);
        figures.add(new Figure(metric, unit, Statistics.percentile(values, 50)));
    }

    public List<Figure> figures() {
        return Collections.unmodifiableList(figures);
    }

    /** Whether two warm-up rounds agreed before the timed ones. */
    public boolean steady() {
        return doubt.isEmpty();
    }

    public String json() {
        Map<String, Object> artifact = new LinkedHashMap<String, Object>();
        artifact.put("name", manifest.modelFile);
        artifact.put("format", "gguf");
        artifact.put("sha256", manifest.modelSha256);
        artifact.put("bytes", manifest.modelBytes);
        artifact.put("weight_bytes", manifest.weightBytes);
        artifact.put("parameters", manifest.parameters);
        artifact.put("grid", manifest.grid);
        artifact.put("note", manifest.name);
        Map<String, Object> document = new LinkedHashMap<String, Object>();
        document.put("schema", (long) SCHEMA);
        document.put("measurements", measurements);
        document.put("problems", none());
        document.put("artifacts", new ArrayList<Object>(Arrays.<Object>asList(artifact)));
        return Json.write(document);
    }
}
