package org.edgeslm.core;

import java.io.ByteArrayOutputStream;
import java.io.File;
import java.io.FileOutputStream;
import java.io.IOException;
import java.io.InputStream;
import java.security.MessageDigest;
import java.util.Collections;
import java.util.List;

/**
 * A bundle into a folder of the app's own, every byte checked on the way, parts joined. It is written beside its place
 * and moved there when it is whole, so a folder that is there is whole, whatever happened on the way.
 */
public final class Unpacker {
    private static final String PART = ".part";
    private static final int CHUNK = 1 << 18;
    private static final long MARGIN_BYTES = 16L << 20;

    /** Hears how far it is, and may end it. */
    public interface Watcher {
        /** @return false to stop */
        boolean at(long done, long total);
    }

    private Unpacker() {}

    /** Removes what an interrupted unpacking left; call it when the app starts. */
    public static void tidy(File parent) {
        File[] left = parent.listFiles();
        for (File file : left == null ? new File[0] : left) {
            if (file.getName().endsWith(PART)) delete(file);
        }
    }

    /** The manifest of a source, checked. @throws BundleError, IOException */
    public static Manifest manifest(BundleSource source) throws IOException {
        byte[] raw = small(source, Manifest.NAME);
        if (raw == null) throw new BundleError(BundleError.Kind.NONE);
        byte[] seal = small(source, Manifest.SEAL);
        return Manifest.read(raw, seal == null ? new byte[0] : seal);
    }

    private static byte[] small(BundleSource source, String name) throws IOException {
        InputStream in = source.open(name);
        if (in == null) return null;
        try {
            ByteArrayOutputStream out = new ByteArrayOutputStream();
            byte[] buffer = new byte[8192];
            for (int n; (n = in.read(buffer)) > 0; ) {
                out.write(buffer, 0, n);
                if (out.size() > Manifest.LARGEST_BYTES) throw new BundleError(BundleError.Kind.DAMAGED);
            }
            return out.toByteArray();
        } finally {
            in.close();
        }
    }

    /** Unpacks into `into`, replacing an older bundle there only when the new one is whole. @throws BundleError, IOException */
    public static Manifest unpack(BundleSource source, File into, Watcher watcher) throws IOException {
        Manifest manifest = manifest(source);
        File part = new File(into.getPath() + PART);
        delete(part);
        try {
            need(part.getAbsoluteFile().getParentFile(), manifest.totalBytes());
            if (!part.mkdirs()) throw new IOException("cannot make " + part);
            Progress progress = new Progress(manifest.totalBytes(), watcher);
            for (Manifest.Piece file : manifest.files) copy(source, file, new File(part, file.path), progress);
            // of the bundle as it came: names of parts that are joined now do no harm
            for (String name : new String[] {Manifest.NAME, Manifest.SEAL}) {
                FileOutputStream out = new FileOutputStream(new File(part, name));
                out.write(small(source, name));
                out.close();
            }
            delete(into);
            if (!part.renameTo(into)) throw new IOException("cannot move the bundle to " + into);
            return manifest;
        } finally {
            delete(part);
        }
    }

    /** A bundle that was unpacked before; sizes are looked at again, hashes are not. @throws BundleError, IOException */
    public static Manifest unpacked(File folder) throws IOException {
        Manifest manifest = manifest(new BundleSource.Folder(folder));
        for (Manifest.Piece file : manifest.files) {
            long size = new File(folder, file.path).length();
            if (size != file.bytes) throw new BundleError(BundleError.Kind.TRUNCATED, file.path, size, file.bytes);
        }
        return manifest;
    }

    private static void need(File parent, long bytes) throws IOException {
        parent.mkdirs();
        long free = parent.getUsableSpace();
        if (free < bytes + MARGIN_BYTES) {
            throw new BundleError(BundleError.Kind.SPACE, (bytes + MARGIN_BYTES) / 1000000, free / 1000000);
        }
    }

    private static void copy(BundleSource source, Manifest.Piece file, File target, Progress progress) throws IOException {
        File home = target.getParentFile();
        if (!home.isDirectory() && !home.mkdirs()) throw new IOException("cannot make " + home);
        MessageDigest whole = Manifest.sha256();
        FileOutputStream out = new FileOutputStream(target);
        try {
            List<Manifest.Piece> pieces = file.parts.isEmpty() ? Collections.singletonList(file) : file.parts;
            for (Manifest.Piece piece : pieces) copy(source, piece, out, whole, progress);
            out.getFD().sync();
        } finally {
            out.close();
        }
        if (!Manifest.hex(whole.digest()).equals(file.sha256)) throw new BundleError(BundleError.Kind.CHANGED, file.path);
    }

    private static void copy(BundleSource source, Manifest.Piece piece, FileOutputStream out, MessageDigest whole,
            Progress progress) throws IOException {
        InputStream in = source.open(piece.path);
        if (in == null) throw new BundleError(BundleError.Kind.MISSING, piece.path);
        MessageDigest digest = Manifest.sha256();
        long size = 0;
        try {
            byte[] buffer = new byte[CHUNK];
            for (int n; size <= piece.bytes && (n = in.read(buffer)) > 0; size += n) {
                digest.update(buffer, 0, n);
                whole.update(buffer, 0, n);
                out.write(buffer, 0, n);
                progress.more(n);
            }
        } finally {
            in.close();
        }
        if (size != piece.bytes) throw new BundleError(BundleError.Kind.TRUNCATED, piece.path, size, piece.bytes);
        if (!Manifest.hex(digest.digest()).equals(piece.sha256)) {
            throw new BundleError(BundleError.Kind.CHANGED, piece.path);
        }
    }

    private static final class Progress {
        private final long total;
        private final Watcher watcher;
        private long done;

        Progress(long total, Watcher watcher) {
            this.total = total;
            this.watcher = watcher;
        }

        void more(long bytes) throws BundleError {
            done += bytes;
            if (watcher != null && !watcher.at(done, total)) throw new BundleError(BundleError.Kind.STOPPED);
        }
    }

    /** A file or a folder with all that is in it; links are removed, not followed. */
    public static void delete(File file) {
        File[] inside = file.isDirectory() && !isLink(file) ? file.listFiles() : null;
        for (File child : inside == null ? new File[0] : inside) delete(child);
        file.delete();
    }

    private static boolean isLink(File file) {
        try {
            File home = file.getAbsoluteFile().getParentFile().getCanonicalFile();
            return !file.getCanonicalFile().equals(new File(home, file.getName()));
        } catch (IOException error) {
            return true;
        }
    }
}
