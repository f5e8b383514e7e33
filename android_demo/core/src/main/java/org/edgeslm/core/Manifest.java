package org.edgeslm.core;

import java.nio.ByteBuffer;
import java.nio.charset.CharacterCodingException;
import java.nio.charset.Charset;
import java.security.MessageDigest;
import java.security.NoSuchAlgorithmException;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.Collections;
import java.util.HashSet;
import java.util.List;
import java.util.Set;
import java.util.regex.Pattern;

/** What a bundle says of itself, checked against its seal and its schema. Layout: edgeslm/export/bundle_files.py. */
public final class Manifest {
    public static final int SCHEMA = 1;
    public static final String NAME = "edgeslm-bundle.json";
    public static final String SEAL = "edgeslm-bundle.sha256";
    public static final int LARGEST_BYTES = 4 << 20;
    static final Charset UTF_8 = Charset.forName("UTF-8");
    /** Grids of ggml that the packaged llama.cpp (b8189) can run. */
    private static final Set<String> GRIDS = new HashSet<String>(Arrays.asList(
            "f32", "f16", "bf16", "q8_0", "q4_0", "q4_0_portable", "q4_1", "q5_0", "q5_1", "q2_k", "q3_k", "q4_k", "q5_k",
            "q6_k", "iq1_s", "iq1_m", "iq2_xxs", "iq2_xs", "iq2_s", "iq3_xxs", "iq3_s", "iq4_nl", "iq4_xs", "tq1_0", "tq2_0",
            "mxfp4"));
    private static final Pattern SAFE = Pattern.compile("[A-Za-z0-9_][A-Za-z0-9._+-]*(/[A-Za-z0-9_][A-Za-z0-9._+-]*)*");
    private static final long RUNTIME_BYTES = 80L << 20;

    /** A file of the bundle, or a part of one. */
    public static final class Piece {
        public final String path;
        public final long bytes;
        public final String sha256;
        public final List<Piece> parts;

        Piece(Fields fields) {
            path = fields.text("path");
            bytes = fields.size("bytes");
            sha256 = fields.text("sha256");
            List<Piece> found = new ArrayList<Piece>();
            if (fields.has("parts")) {
                for (Fields part : fields.objects("parts")) found.add(new Piece(part));
            }
            parts = Collections.unmodifiableList(found);
        }
    }

    public final String name;
    public final String modelFile;
    public final String modelSha256;
    public final String grid;
    public final long modelBytes;
    public final long weightBytes;
    public final long parameters;
    public final int vocabulary;
    public final int layers;
    public final int kvHeads;
    public final int headDim;
    /** -1: none. */
    public final int beginId;
    public final boolean stripsFirstBlank;
    /** null: the model only goes on with a text. */
    public final Template template;
    public final int[] stopIds;
    public final Sampling sampling;
    public final int maxNew;
    public final int context;
    public final String licence;
    public final String baseModel;
    public final List<Piece> files;

    private Manifest(Fields fields) throws BundleError {
        name = fields.text("name");
        Fields model = fields.object("model");
        if (!model.text("format").equals("gguf")) throw new BundleError(BundleError.Kind.CONTAINER, model.text("format"));
        modelFile = model.text("file");
        modelSha256 = model.text("sha256");
        grid = model.text("grid");
        for (String used : model.texts("formats")) {
            if (!GRIDS.contains(used)) throw new BundleError(BundleError.Kind.UNKNOWN_GRID, used);
        }
        modelBytes = model.size("bytes");
        weightBytes = model.size("weight_bytes");
        parameters = model.size("parameters");
        vocabulary = model.count("vocabulary");
        layers = model.count("layers");
        kvHeads = model.count("kv_heads");
        headDim = model.count("head_dim");
        Fields tokenizer = fields.object("tokenizer");
        beginId = tokenizer.has("begin_id") ? tokenizer.count("begin_id") : -1;
        stripsFirstBlank = tokenizer.flag("strips_first_blank");
        template = fields.has("template") ? new Template(fields.object("template")) : null;
        stopIds = fields.counts("stop_ids");
        Fields generation = fields.object("generation");
        sampling = new Sampling(generation.real("temperature"), generation.count("top_k"), generation.real("top_p"),
                generation.size("seed"));
        maxNew = generation.count("max_new");
        context = generation.count("context");
        licence = fields.object("licence").text("name");
        baseModel = fields.object("origin").text("base_model");
        List<Piece> pieces = new ArrayList<Piece>();
        for (Fields file : fields.objects("files")) pieces.add(new Piece(file));
        files = Collections.unmodifiableList(pieces);
        checkNames();
    }

    private void checkNames() throws BundleError {
        Set<String> seen = new HashSet<String>(Arrays.asList(NAME, SEAL));
        boolean found = false;
        for (Piece file : files) {
            List<Piece> all = new ArrayList<Piece>(file.parts);
            all.add(file);
            long bytes = 0;
            for (Piece piece : all) {
                if (!isSafe(piece.path) || !seen.add(piece.path)) throw new BundleError(BundleError.Kind.ESCAPE, piece.path);
                bytes += piece == file ? 0 : piece.bytes;
            }
            if (!file.parts.isEmpty() && bytes != file.bytes) throw new BundleError(BundleError.Kind.DAMAGED);
            found |= file.path.equals(modelFile);
        }
        if (!found) throw new BundleError(BundleError.Kind.MISSING, modelFile);
    }

    static boolean isSafe(String path) {
        return path.length() < 200 && SAFE.matcher(path).matches();
    }

    /** @throws BundleError for everything that is not a manifest of this version, as it was sealed */
    public static Manifest read(byte[] raw, byte[] seal) throws BundleError {
        Fields fields;
        try {
            fields = new Fields(Json.parse(UTF_8.newDecoder().decode(ByteBuffer.wrap(raw)).toString()));
        } catch (CharacterCodingException error) {
            throw new BundleError(BundleError.Kind.DAMAGED);
        } catch (IllegalArgumentException error) {
            throw new BundleError(BundleError.Kind.DAMAGED);
        }
        try {
            if (!fields.text("kind").equals("edgeslm-bundle")) throw new BundleError(BundleError.Kind.NONE);
            if (fields.size("schema") != SCHEMA) {
                throw new BundleError(BundleError.Kind.VERSION, fields.size("schema"), SCHEMA);
            }
            String sealed = new String(seal, 0, Math.min(64, seal.length), UTF_8);
            if (!sealed.equals(hex(sha256().digest(raw)))) throw new BundleError(BundleError.Kind.CHANGED, NAME);
            return new Manifest(fields);
        } catch (IllegalArgumentException error) {
            throw new BundleError(BundleError.Kind.DAMAGED);
        }
    }

    /** Bytes of all files, parts joined. */
    public long totalBytes() {
        long total = 0;
        for (Piece file : files) total += file.bytes;
        return total;
    }

    /** What a device must have free: weights, keys and values of `context` tokens in float16, the runtime. */
    public long neededBytes(int context) {
        return modelBytes + 4L * layers * kvHeads * headDim * context + RUNTIME_BYTES;
    }

    static MessageDigest sha256() {
        try {
            return MessageDigest.getInstance("SHA-256");
        } catch (NoSuchAlgorithmException error) {
            throw new AssertionError(error); // every Java has it
        }
    }

    static String hex(byte[] bytes) {
        StringBuilder out = new StringBuilder();
        for (byte b : bytes) out.append(Character.forDigit(b >> 4 & 15, 16)).append(Character.forDigit(b & 15, 16));
        return out.toString();
    }
}
