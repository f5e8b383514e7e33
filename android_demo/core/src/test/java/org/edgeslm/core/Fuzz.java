package org.edgeslm.core;

import java.util.ArrayList;
import java.util.List;
import java.util.Random;

/** Random conversations through template, session and streaming, with an engine that answers with random bytes. */
final class Fuzz {
    private static final String CHATML = "{\"start\": \"\", \"default_system\": \"<|im_start|>system\\nx<|im_end|>\\n\", \"roles\": {"
            + "\"system\": [{\"content\": \"as is\"}], \"user\": [{\"text\": \"<|im_start|>user\\n\"}, {\"content\": \"trimmed\"}],"
            + "\"assistant\": [{\"content\": \"as is\"}]}, \"generation\": \"<|im_start|>assistant\\n\"}";

    private Fuzz() {}

    /** @return answers written; throws whatever breaks */
    static int run(long seed, int count) throws Exception {
        Random random = new Random(seed);
        Noise engine = new Noise(random);
        Manifest manifest = manifest(CHATML);
        Session session = new Session(engine, manifest);
        List<Message> messages = new ArrayList<Message>();
        int answers = 0;
        for (int i = 0; i < count; i++) {
            messages.add(new Message(Message.USER, text(random)));
            session.ready();
            if (random.nextInt(50) == 0) session.stop();
            Sampling sampling = random.nextBoolean() ? Sampling.greedy() : new Sampling(0.8, random.nextInt(4), 0.9, i);
            try {
                Answer answer = session.ask(messages, sampling, 1 + random.nextInt(12), null);
                if (answer.ended.equals(Answer.WRITING)) throw new IllegalStateException("an answer did not end");
                if (engine.held > engine.context()) throw new IllegalStateException("the context overflowed");
                answers++;
                messages.add(new Message(Message.ASSISTANT, answer.text()));
            } catch (EngineError error) { // a message longer than the context is refused, and only that
                if (!error.getMessage().startsWith("the message has")) throw error;
                messages.clear();
            }
            if (random.nextInt(8) == 0) messages.clear();
            Json.parse(Json.write(new ArrayList<Object>(contents(messages)))); // what is kept on disk can be read again
        }
        return answers;
    }

    private static List<String> contents(List<Message> messages) {
        List<String> found = new ArrayList<String>();
        for (Message message : messages) found.add(message.content);
        return found;
    }

    /** Any chars at all, halves of surrogate pairs included. */
    private static String text(Random random) {
        StringBuilder text = new StringBuilder();
        int length = random.nextInt(random.nextInt(20) == 0 ? 600 : 30);
        for (int i = 0; i < length; i++) {
            int kind = random.nextInt(4);
            if (kind == 0) text.append((char) random.nextInt(0x10000));
            else if (kind == 1) text.appendCodePoint(random.nextInt(0x110000));
            else if (kind == 2) text.append(random.nextBoolean() ? "<|im_end|>" : "\n");
            else text.append((char) (32 + random.nextInt(95)));
        }
        return text.toString();
    }

    private static Manifest manifest(String template) throws Exception {
        String raw = "{\"schema\": 1, \"kind\": \"edgeslm-bundle\", \"name\": \"noise\", \"model\": {\"format\": \"gguf\", \"file\": \"m\","
                + "\"sha256\": \"\", \"grid\": \"q4_0\", \"formats\": [\"q4_0\"], \"bytes\": 1, \"weight_bytes\": 1, \"parameters\": 1,"
                + "\"vocabulary\": 259, \"layers\": 1, \"kv_heads\": 1, \"head_dim\": 1}, \"tokenizer\": {\"begin_id\": 257,"
                + "\"strips_first_blank\": false}, \"template\": " + template + ", \"stop_ids\": [256], \"generation\": {\"temperature\":"
                + "0.0, \"top_k\": 0, \"top_p\": 1.0, \"seed\": 0, \"max_new\": 9, \"context\": 512}, \"licence\": {\"name\": \"x\"},"
                + "\"origin\": {\"base_model\": \"x\"}, \"files\": [{\"path\": \"m\", \"bytes\": 1, \"sha256\": \"x\"}]}";
        byte[] bytes = raw.getBytes(Manifest.UTF_8);
        return Manifest.read(bytes, Manifest.hex(Manifest.sha256().digest(bytes)).getBytes(Manifest.UTF_8));
    }

    /** One id a byte, 256 ends an answer, 257 begins a text, 258 is an empty control token. */
    private static final class Noise implements Engine {
        private final Random random;
        private boolean interrupted;
        int held;

        Noise(Random random) {
            this.random = random;
        }

        @Override
        public int vocabulary() {
            return 259;
        }

        @Override
        public int context() {
            return 512;
        }

        @Override
        public int[] tokenize(String text) {
            byte[] bytes = text.getBytes(Manifest.UTF_8);
            int[] ids = new int[bytes.length];
            for (int i = 0; i < ids.length; i++) ids[i] = bytes[i] & 0xff;
            return ids;
        }

        @Override
        public byte[] piece(int id, boolean first) {
            return id < 256 ? new byte[] {(byte) id} : new byte[0];
        }

        @Override
        public void keep(int n) throws EngineError {
            if (n > held) throw new EngineError("asked to keep more than there is");
            held = n;
        }

        @Override
        public boolean feed(int[] ids, int from, int to) {
            if (interrupted || random.nextInt(500) == 0) return false;
            held += to - from;
            return true;
        }

        @Override
        public int greedy() {
            return random.nextInt(259);
        }

        @Override
        public float[] logits() {
            float[] logits = new float[259];
            for (int i = 0; i < logits.length; i++) logits[i] = random.nextFloat() * 9;
            return logits;
        }

        @Override
        public void interrupt() {
            interrupted = true;
        }

        @Override
        public void calm() {
            interrupted = false;
        }
    }
}
