package org.edgeslm.core;

import java.util.ArrayList;
import java.util.List;

/** Which of the packaged builds of llama.cpp fits a processor. build.py packages one shim beside each. */
public final class Libraries {
    private static String loaded;

    private Libraries() {}

    /** Names for System.loadLibrary, the best first. */
    static List<String> candidates(String abi, List<String> simd) {
        List<String> names = new ArrayList<String>();
        if (abi.equals("x86_64")) {
            names.add("edgeslm_x86_64");
        } else if (abi.equals("arm64-v8a")) {
            boolean dot = simd.contains("asimddp");
            if (dot && simd.contains("i8mm")) names.add("edgeslm_v8_2_dotprod_i8mm");
            if (dot) names.add("edgeslm_v8_2_dotprod");
            names.add("edgeslm_v8");
        }
        return names;
    }

    /** Loads the best that the system takes, once. @throws EngineError when there is none for this processor */
    public static synchronized String load(String[] abis, List<String> simd) throws EngineError {
        if (loaded != null) return loaded;
        String why = "";
        for (String abi : abis) {
            for (String name : candidates(abi, simd)) {
                try {
                    System.loadLibrary(name);
                    loaded = name;
                    return name;
                } catch (UnsatisfiedLinkError error) {
                    why = String.valueOf(error.getMessage());
                }
            }
        }
        throw new EngineError("this app has no llama.cpp for this processor (" + (abis.length > 0 ? abis[0] : "?") + ") " + why);
    }
}
