package org.edgeslm.demo;

import android.net.Uri;
import android.os.Build;
import android.os.SystemClock;
import java.io.File;
import java.io.FileOutputStream;
import java.io.IOException;
import java.io.InputStream;
import java.util.List;
import java.util.Map;
import org.edgeslm.core.Answer;
import org.edgeslm.core.Bench;
import org.edgeslm.core.BenchDocument;
import org.edgeslm.core.BundleError;
import org.edgeslm.core.BundleSource;
import org.edgeslm.core.Device;
import org.edgeslm.core.EngineError;
import org.edgeslm.core.Libraries;
import org.edgeslm.core.LlamaEngine;
import org.edgeslm.core.Manifest;
import org.edgeslm.core.Memory;
import org.edgeslm.core.Message;
import org.edgeslm.core.Session;
import org.edgeslm.core.Unpacker;

/** What takes long, on the one worker thread, which alone touches the model. It tells the Host by posting. */
final class Worker {
    private static final File ROOT = new File("/");
    private static final long SHOW_EVERY_MS = 60;
    /** What llama.rn 0.11.5 was built from. */
    private static final String LLAMA = "b8189 (llama.rn 0.11.5)";

    private final Host host;
    private final int threads = Device.threads(ROOT);
    private LlamaEngine engine;
    private Session session;
    private Manifest manifest;
    private volatile boolean stopped;
    private volatile LlamaEngine running;
    private long shown;

    Worker(Host host) {
        this.host = host;
    }

    /** A task whose failure the Host hears. */
    private abstract class Task implements Runnable {
        abstract void work() throws Exception;

        @Override
        public void run() {
            try {
                work();
            } catch (final Exception error) {
                fail(error);
            } catch (final OutOfMemoryError error) {
                unload();
                fail(error);
            }
        }

        void fail(final Throwable error) {
            host.post(new Runnable() {
                @Override
                public void run() {
                    host.failed(error);
                }
            });
        }
    }

    /** Call before a task is handed to the thread: a stop that comes before it starts counts. */
    void ready() {
        stopped = false;
    }

    /** From any thread. */
    void stop() {
        stopped = true;
        LlamaEngine now = running;
        if (now != null) now.interrupt();
    }

    Runnable opening() {
        return new Task() {
            @Override
            void work() throws Exception {
                Unpacker.tidy(host.store.parent());
                host.store.incoming().delete();
                BundleError damaged = null;
                if (host.store.bundle().isDirectory()) {
                    try {
                        opened(Unpacker.unpacked(host.store.bundle()));
                        return;
                    } catch (BundleError error) {
                        damaged = error;
                    }
                }
                AssetSource own = new AssetSource(host.context.getAssets());
                if (own.isThere()) opened(Unpacker.unpack(own, host.store.bundle(), progress()));
                else if (damaged != null) throw damaged;
                else fail(null); // no bundle yet, which is no failure
            }
        };
    }

    Runnable importing(final Uri uri) {
        ready();
        return new Task() {
            @Override
            void work() throws Exception {
                File copy = host.store.incoming();
                try {
                    fetch(uri, copy);
                    BundleSource source = zip(copy);
                    try {
                        Unpacker.manifest(source); // what is wrong with it is said before the old model goes
                        unload();
                        opened(Unpacker.unpack(source, host.store.bundle(), progress()));
                    } finally {
                        source.close();
                    }
                } finally {
                    copy.delete();
                }
            }
        };
    }

    private static BundleSource zip(File file) throws IOException {
        try {
            return new BundleSource.Zip(file);
        } catch (IOException error) {
            throw new BundleError(BundleError.Kind.NONE);
        }
    }

    private void fetch(Uri uri, File to) throws IOException {
        InputStream in = host.context.getContentResolver().openInputStream(uri);
        if (in == null) throw new IOException(uri.getLastPathSegment());
        try {
            FileOutputStream out = new FileOutputStream(to);
            byte[] buffer = new byte[1 << 18];
            for (int n; (n = in.read(buffer)) > 0; ) {
                out.write(buffer, 0, n);
                if (stopped) throw new BundleError(BundleError.Kind.STOPPED);
            }
            out.close();
        } finally {
            in.close();
        }
    }

    private Unpacker.Watcher progress() {
        return new Unpacker.Watcher() {
            @Override
            public boolean at(long done, long total) {
                if (due() || done == total) tell(done, total);
                return !stopped;
            }
        };
    }

    private boolean due() {
        long now = SystemClock.uptimeMillis();
        if (now - shown < SHOW_EVERY_MS) return false;
        shown = now;
        return true;
    }

    private void tell(final long done, final long total) {
        host.post(new Runnable() {
            @Override
            public void run() {
                host.at(done, total);
            }
        });
    }

    private void opened(final Manifest found) {
        manifest = found;
        host.post(new Runnable() {
            @Override
            public void run() {
                host.opened(found);
            }
        });
    }

    private void load(int context) throws EngineError, IOException {
        if (engine != null) return;
        long needed = manifest.neededBytes(context);
        long free = host.freeBytes();
        if (free < needed) throw new EngineError(host.context.getString(R.string.error_needs, needed / 1000000, free / 1000000));
        Libraries.load(Build.SUPPORTED_64_BIT_ABIS, Device.simd(ROOT));
        engine = new LlamaEngine(new File(host.store.bundle(), manifest.modelFile), manifest, context, threads);
        session = new Session(engine, manifest);
    }

    private void unload() {
        running = null;
        if (engine != null) engine.close();
        engine = null;
        session = null;
    }

    Runnable unloading() {
        return new Runnable() {
            @Override
            public void run() {
                unload();
            }
        };
    }

    Runnable answering(final List<Message> messages) {
        return new Task() {
            @Override
            void work() throws Exception {
                load(manifest.context);
                session.ready();
                running = engine;
                host.post(new Runnable() {
                    @Override
                    public void run() {
                        host.answering();
                    }
                });
                if (stopped) session.stop();
                final Answer answer = session.ask(messages, manifest.sampling, manifest.maxNew, new Session.Listener() {
                    @Override
                    public void text(String more, Answer soFar) {
                        if (stopped) session.stop();
                        if (due()) heard(soFar.text(), soFar.tokensPerSecond());
                    }
                });
                running = null;
                heard(answer.text(), answer.tokensPerSecond());
                host.post(new Runnable() {
                    @Override
                    public void run() {
                        host.answered(answer);
                    }
                });
            }
        };
    }

    private void heard(final String text, final double speed) {
        host.post(new Runnable() {
            @Override
            public void run() {
                host.heard(text, speed);
            }
        });
    }

    /** A fresh engine of the job's own context, so that figures are those of `edgeslm bench`. */
    Runnable benching() {
        return new Task() {
            @Override
            void work() throws Exception {
                unload();
                Map<String, Long> before = Memory.now();
                long start = System.nanoTime();
                try {
                    load(Bench.CONTEXT);
                    double loaded = (System.nanoTime() - start) / 1e9;
                    running = engine;
                    Bench bench = new Bench(engine);
                    Bench.Result result = bench.run(before, loaded, new Bench.Watcher() {
                        @Override
                        public boolean at(int done, int most) {
                            tell(done, most);
                            return !stopped;
                        }
                    });
                    if (result == null) throw new BundleError(BundleError.Kind.STOPPED);
                    Map<String, Object> device = Device.facts(ROOT, Host.deviceName(), Build.HARDWARE, "Android " + Build.VERSION.RELEASE);
                    benched(new BenchDocument(bench, result, manifest, device, LLAMA, threads));
                } finally {
                    unload();
                }
            }
        };
    }

    private void benched(final BenchDocument document) {
        host.post(new Runnable() {
            @Override
            public void run() {
                host.benched(document);
            }
        });
    }
}
