package org.edgeslm.core;

import java.io.Closeable;
import java.io.File;
import java.io.FileInputStream;
import java.io.IOException;
import java.io.InputStream;
import java.util.Enumeration;
import java.util.zip.ZipEntry;
import java.util.zip.ZipFile;

/** Where a bundle's files come from. */
public interface BundleSource extends Closeable {
    /** Opens a file of the bundle; null when it is not there. */
    InputStream open(String name) throws IOException;

    /** A folder. */
    final class Folder implements BundleSource {
        private final File root;

        public Folder(File root) {
            this.root = root;
        }

        @Override
        public InputStream open(String name) throws IOException {
            File file = new File(root, name);
            return file.isFile() ? new FileInputStream(file) : null;
        }

        @Override
        public void close() {}
    }

    /** A zip archive whose files lie at its top or below one folder. */
    final class Zip implements BundleSource {
        private final ZipFile archive;
        private String top = "";

        /** @throws IOException for a file that is no zip archive */
        public Zip(File file) throws IOException {
            archive = new ZipFile(file);
            int shortest = Integer.MAX_VALUE;
            for (Enumeration<? extends ZipEntry> all = archive.entries(); all.hasMoreElements(); ) {
                String name = all.nextElement().getName();
                boolean manifest = name.equals(Manifest.NAME) || name.endsWith("/" + Manifest.NAME);
                if (manifest && name.length() < shortest) {
                    shortest = name.length();
                    top = name.substring(0, name.length() - Manifest.NAME.length());
                }
            }
        }

        @Override
        public InputStream open(String name) throws IOException {
            ZipEntry entry = archive.getEntry(top + name);
            return entry == null ? null : archive.getInputStream(entry);
        }

        @Override
        public void close() throws IOException {
            archive.close();
        }
    }
}
