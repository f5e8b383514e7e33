package org.edgeslm.core;

import java.io.File;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.LinkedHashMap;
import java.util.LinkedHashSet;
import java.util.List;
import java.util.Map;
import java.util.Set;
import java.util.TreeMap;

/** Facts of a machine as edgeslm/devices/facts.py names them; one that cannot be read is left out. */
public final class Device {
    private static final Set<String> SIMD = new LinkedHashSet<String>(Arrays.asList(
            "sse4_2", "avx", "avx2", "fma", "f16c", "avx_vnni", "avx512f", "avx512bw", "avx512vl", "avx512_vnni",
            "avx512vbmi", "avx512_bf16", "avx512_fp16", "amx_tile", "amx_int8", "amx_bf16", "neon", "asimd", "asimddp",
            "asimdhp", "i8mm", "bf16", "sve", "sve2", "sme"));

    private Device() {}

    /**
     * The `device` of a measurement. `cpu` and `name` are what the system calls them, "" where it does not.
     */
    public static Map<String, Object> facts(File root, String name, String cpu, String os) {
        Map<String, Object> found = new LinkedHashMap<String, Object>();
        put(found, "cpu", cpu.isEmpty() ? field(root, "model name") : cpu);
        put(found, "machine", System.getProperty("os.arch", ""));
        found.put("cores", (long) cores(root));
        for (String line : Memory.lines(new File(root, "proc/meminfo"))) {
            if (line.matches("MemTotal: +[0-9]{1,15} kB")) found.put("memory_bytes", 1024 * Long.parseLong(line.replaceAll("[^0-9]", "")));
        }
        put(found, "os", os);
        put(found, "kernel", System.getProperty("os.version", ""));
        found.put("simd", new ArrayList<Object>(simd(root)));
        put(found, "name", name.isEmpty() ? String.valueOf(found.get("cpu")) : name);
        byte[] same = Json.write(new TreeMap<String, Object>(found)).getBytes(Manifest.UTF_8);
        found.put("id", Manifest.hex(Manifest.sha256().digest(same)).substring(0, 12));
        return found;
    }

    private static void put(Map<String, Object> found, String key, String value) {
        if (!value.isEmpty()) found.put(key, value);
    }

    private static String field(File root, String name) {
        for (String line : Memory.lines(new File(root, "proc/cpuinfo"))) {
            int colon = line.indexOf(':');
            if (colon > 0 && line.substring(0, colon).trim().equals(name)) return line.substring(colon + 1).trim();
        }
        return "";
    }

    /** Those that every core has and that decide which kernels run. */
    public static List<String> simd(File root) {
        Set<String> common = null;
        for (String line : Memory.lines(new File(root, "proc/cpuinfo"))) {
            if (!line.startsWith("Features") && !line.startsWith("flags")) continue;
            Set<String> here = new LinkedHashSet<String>(Arrays.asList(line.substring(line.indexOf(':') + 1).trim().split("\\s+")));
            if (common == null) common = here;
            common.retainAll(here);
        }
        List<String> found = new ArrayList<String>(SIMD);
        found.retainAll(common == null ? new LinkedHashSet<String>() : common);
        return found;
    }

    public static int cores(File root) {
        int found = 0;
        for (String line : Memory.lines(new File(root, "proc/cpuinfo"))) if (line.matches("processor\\s*:.*")) found++;
        return Math.max(found, Runtime.getRuntime().availableProcessors());
    }

    /** As many threads as there are fast cores, by their highest clock; half of all where that cannot be read. */
    public static int threads(File root) {
        int cores = cores(root);
        List<Long> clocks = new ArrayList<Long>();
        for (int cpu = 0; cpu < cores; cpu++) {
            String[] lines = Memory.lines(new File(root, "sys/devices/system/cpu/cpu" + cpu + "/cpufreq/cpuinfo_max_freq"));
            if (lines.length > 0 && lines[0].trim().matches("[0-9]{1,12}")) clocks.add(Long.parseLong(lines[0].trim()));
        }
        if (clocks.size() < cores) return Math.max(1, cores / 2);
        long slowest = Long.MAX_VALUE;
        for (long clock : clocks) slowest = Math.min(slowest, clock);
        int fast = 0;
        for (long clock : clocks) if (clock > slowest) fast++;
        return Math.max(1, fast == 0 ? cores / 2 : fast);
    }
}
