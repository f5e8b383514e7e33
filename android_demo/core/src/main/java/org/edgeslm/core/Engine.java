package org.edgeslm.core;

/** A model that can be fed ids. One thread uses it; only `interrupt` may be called from another. */
public interface Engine {
    /** Ids of the vocabulary. */
    int vocabulary();

    /** Ids that fit into its sequence. */
    int context();

    /** Ids of a text; special tokens spelled in it are found, none are added. */
    int[] tokenize(String text);

    /** UTF-8 bytes of an id, none for control tokens. `first`: it begins an answer. */
    byte[] piece(int id, boolean first);

    /** Cuts the sequence back to its first n ids. */
    void keep(int n) throws EngineError;

    /** Appends ids. @return false when it was interrupted; what the sequence holds then is known only after `keep` */
    boolean feed(int[] ids, int from, int to) throws EngineError;

    /** The most likely next id. */
    int greedy() throws EngineError;

    /** Logits of the next id; the array is the engine's and changes with the next call. */
    float[] logits() throws EngineError;

    /** Makes a `feed` that runs, or the next one, return false; `calm` ends that. */
    void interrupt();

    void calm();
}
