package org.edgeslm.core;

import java.io.BufferedReader;
import java.io.File;
import java.io.FileInputStream;
import java.io.IOException;
import java.io.InputStreamReader;
import java.util.LinkedHashMap;
import java.util.Map;

/** What a process holds, in bytes, as the kernel says it; a field that cannot be read is not there. */
public final class Memory {
    private static final String[][] STATUS = {
        {"RssAnon", "rss_anon"}, {"RssFile", "rss_file"}, {"VmHWM", "vm_hwm"}, {"VmSwap", "vm_swap"}
    };
    private static final String[][] ROLLUP = {{"Pss", "pss"}};

    private Memory() {}

    /** Of this process now: rss_anon, rss_file, vm_hwm, vm_swap, pss. */
    public static Map<String, Long> now() {
        return now(new File("/proc/self"));
    }

    static Map<String, Long> now(File process) {
        Map<String, Long> found = new LinkedHashMap<String, Long>();
        read(new File(process, "status"), STATUS, found);
        read(new File(process, "smaps_rollup"), ROLLUP, found);
        return found;
    }

    /** Without smaps_rollup, which takes the kernel milliseconds: for a figure that is shown all the time. */
    public static long resident() {
        Map<String, Long> found = new LinkedHashMap<String, Long>();
        read(new File("/proc/self/status"), STATUS, found);
        Long anon = found.get("rss_anon");
        Long file = found.get("rss_file");
        return anon == null ? -1 : anon + (file == null ? 0 : file);
    }

    private static void read(File file, String[][] wanted, Map<String, Long> found) {
        for (String line : lines(file)) {
            for (String[] field : wanted) {
                if (!line.startsWith(field[0] + ":")) continue;
                String[] parts = line.substring(field[0].length() + 1).trim().split("\\s+");
                if (parts.length == 2 && parts[1].equals("kB") && parts[0].matches("[0-9]{1,15}")) {
                    found.put(field[1], Long.parseLong(parts[0]) * 1024);
                }
            }
        }
    }

    /** Lines of a small text file, none when it cannot be read. */
    static String[] lines(File file) {
        StringBuilder text = new StringBuilder();
        try {
            BufferedReader in = new BufferedReader(new InputStreamReader(new FileInputStream(file), Manifest.UTF_8));
            try {
                for (String line; (line = in.readLine()) != null && text.length() < 1 << 20; ) text.append(line).append('\n');
            } finally {
                in.close();
            }
        } catch (IOException error) {
            return new String[0];
        }
        return text.toString().split("\n");
    }
}
