package org.edgeslm.core;

import java.io.BufferedReader;
import java.io.File;
import java.io.IOException;
import java.io.InputStreamReader;
import java.io.PrintStream;
import java.util.ArrayList;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;

/** The app's logic on a desktop JVM, for tests/test_android.py: a JSON object a line in, one a line out. */
public final class Driver {
    private LlamaEngine engine;
    private Manifest manifest;
    private Session session;

    private Driver() {}

    public static void main(String[] arguments) throws IOException {
        if (arguments.length > 0) System.load(arguments[0]);
        PrintStream out = new PrintStream(System.out, true, "UTF-8");
        BufferedReader in = new BufferedReader(new InputStreamReader(System.in, Manifest.UTF_8));
        Driver driver = new Driver();
        for (String line; (line = in.readLine()) != null; ) {
            Map<String, Object> answer = new LinkedHashMap<String, Object>();
            try {
                driver.answer(new Fields(Json.parse(line)), answer);
            } catch (BundleError error) {
                answer.put("kind", error.kind.name());
                answer.put("error", error.getMessage());
            } catch (Exception error) {
                answer.put("kind", error.getClass().getSimpleName());
                answer.put("error", String.valueOf(error.getMessage()));
            }
            out.println(Json.write(answer));
        }
    }

    private void answer(Fields asked, Map<String, Object> out) throws Exception {
        String what = asked.text("do");
        if (what.equals("echo")) out.put("value", Json.parse(asked.text("json")));
        else if (what.equals("utf8")) out.put("texts", streamed(asked.texts("pieces")));
        else if (what.equals("random")) out.put("values", random(asked.size("seed"), asked.count("count")));
        else if (what.equals("sample")) out.put("ids", sampled(asked));
        else if (what.equals("template")) out.put("texts", templates(asked));
        else if (what.equals("unpack")) unpack(asked, out);
        else if (what.equals("libraries")) out.put("names", new ArrayList<Object>(Libraries.candidates(asked.text("abi"), asked.texts("simd"))));
        else if (what.equals("load")) out.put("name", Libraries.load(asked.texts("abis").toArray(new String[0]), asked.texts("simd")));
        else if (what.equals("fuzz")) out.put("answers", (long) Fuzz.run(asked.size("seed"), asked.count("count")));
        else if (what.equals("facts")) out.put("facts", Device.facts(new File(asked.text("root")), "", "", "Android 15"));
        else if (what.equals("threads")) out.put("threads", (long) Device.threads(new File(asked.text("root"))));
        else if (what.equals("open")) open(asked, out);
        else if (what.equals("chat")) chat(asked, out);
        else if (what.equals("bench")) bench(asked, out);
        else if (what.equals("close")) engine.close();
        else throw new IllegalArgumentException("cannot " + what);
    }

    private static List<Object> streamed(List<String> hex) {
        Utf8Stream stream = new Utf8Stream();
        List<Object> texts = new ArrayList<Object>();
        for (String piece : hex) {
            byte[] bytes = new byte[piece.length() / 2];
            for (int i = 0; i < bytes.length; i++) bytes[i] = (byte) Integer.parseInt(piece.substring(2 * i, 2 * i + 2), 16);
            texts.add(stream.add(bytes, bytes.length));
        }
        texts.add(stream.end());
        return texts;
    }

    private static List<Object> random(long seed, int count) {
        Pcg64 generator = new Pcg64(seed);
        List<Object> values = new ArrayList<Object>();
        for (int i = 0; i < count; i++) values.add(generator.next());
        return values;
    }

    private static Sampling sampling(Fields fields) {
        return new Sampling(fields.real("temperature"), fields.count("top_k"), fields.real("top_p"), fields.size("seed"));
    }

    private static List<Object> sampled(Fields asked) {
        Sampler sampler = new Sampler(sampling(asked.object("sampling")));
        List<Object> ids = new ArrayList<Object>();
        for (Fields row : asked.objects("rows")) {
            List<String> texts = row.texts("logits");
            float[] logits = new float[texts.size()];
            for (int i = 0; i < logits.length; i++) logits[i] = Float.parseFloat(texts.get(i));
            ids.add((long) sampler.pick(logits));
        }
        return ids;
    }

    private static List<Message> messages(Fields fields, String name) {
        List<Message> messages = new ArrayList<Message>();
        for (Fields message : fields.objects(name)) messages.add(new Message(message.text("role"), message.text("content")));
        return messages;
    }

    private static List<Object> templates(Fields asked) {
        Template template = new Template(asked.object("template"));
        List<Object> texts = new ArrayList<Object>();
        for (Fields one : asked.objects("conversations")) {
            texts.add(template.apply(messages(one, "messages"), one.flag("answer")));
        }
        return texts;
    }

    private void unpack(Fields asked, Map<String, Object> out) throws IOException {
        File from = new File(asked.text("from"));
        final long stopAt = asked.has("stop_at") ? asked.size("stop_at") : Long.MAX_VALUE;
        BundleSource source = from.isDirectory() ? new BundleSource.Folder(from) : new BundleSource.Zip(from);
        try {
            final long[] last = new long[2];
            Manifest found = Unpacker.unpack(source, new File(asked.text("into")), new Unpacker.Watcher() {
                @Override
                public boolean at(long done, long total) {
                    last[0] = done;
                    last[1] = total;
                    return done < stopAt;
                }
            });
            out.put("name", found.name);
            out.put("done", last[0]);
            out.put("total", last[1]);
            out.put("needed", found.neededBytes(found.context));
        } finally {
            source.close();
        }
    }

    private void open(Fields asked, Map<String, Object> out) throws Exception {
        File folder = new File(asked.text("folder"));
        manifest = Unpacker.unpacked(folder);
        engine = new LlamaEngine(new File(folder, manifest.modelFile), manifest, asked.count("context"), asked.count("threads"));
        session = new Session(engine, manifest);
        out.put("vocabulary", (long) engine.vocabulary());
        out.put("about", LlamaEngine.about());
    }

    private void chat(Fields asked, Map<String, Object> out) throws EngineError {
        final StringBuilder heard = new StringBuilder();
        final int stopAfter = asked.has("stop_after") ? asked.count("stop_after") : Integer.MAX_VALUE;
        session.ready();
        if (stopAfter == 0) session.stop();
        Answer answer = session.ask(messages(asked, "messages"), sampling(asked.object("sampling")), asked.count("max_new"),
                new Session.Listener() {
                    @Override
                    public void text(String more, Answer soFar) {
                        heard.append(more);
                        if (soFar.ids.size() >= stopAfter) session.stop();
                    }
                });
        out.put("ids", new ArrayList<Object>(answer.ids));
        out.put("text", answer.text());
        out.put("heard", heard.toString());
        out.put("ended", answer.ended);
        out.put("prompt_tokens", (long) answer.promptTokens);
        out.put("reused_tokens", (long) answer.reusedTokens);
        out.put("forgotten", (long) answer.forgotten);
        out.put("tokens_per_second", answer.tokensPerSecond());
    }

    private void bench(Fields asked, Map<String, Object> out) throws EngineError {
        Map<String, Long> before = Memory.now();
        Bench bench = new Bench(engine, asked.count("prefill"), asked.count("new"));
        Bench.Result result = bench.run(before, 0.5, new Bench.Watcher() {
            @Override
            public boolean at(int done, int most) {
                return true;
            }
        });
        Map<String, Object> device = Device.facts(new File("/"), "", "", "test");
        BenchDocument document = new BenchDocument(bench, result, manifest, device, "b1", asked.count("threads"));
        out.put("document", Json.parse(document.json()));
        out.put("figures", (long) document.figures().size());
    }
}
