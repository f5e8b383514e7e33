package org.edgeslm.demo;

import android.content.Context;
import java.io.ByteArrayOutputStream;
import java.io.File;
import java.io.FileInputStream;
import java.io.FileOutputStream;
import java.io.IOException;
import java.util.ArrayList;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import org.edgeslm.core.Fields;
import org.edgeslm.core.Json;
import org.edgeslm.core.Message;

/** What stays when the process ends: the unpacked bundle, the conversation, the system text. */
final class Store {
    private final File files;
    private final File cache;

    Store(Context context) {
        files = context.getFilesDir();
        cache = context.getCacheDir();
    }

    File bundle() {
        return new File(files, "bundle");
    }

    File parent() {
        return files;
    }

    /** Where a chosen file is copied to while it is unpacked. */
    File incoming() {
        return new File(cache, "incoming.zip");
    }

    private File chat() {
        return new File(files, "chat.json");
    }

    /** @return the system text; the conversation is added to `messages`. A file that cannot be read is an empty one. */
    String load(List<Message> messages) {
        try {
            FileInputStream in = new FileInputStream(chat());
            ByteArrayOutputStream out = new ByteArrayOutputStream();
            byte[] buffer = new byte[8192];
            for (int n; (n = in.read(buffer)) > 0; ) out.write(buffer, 0, n);
            in.close();
            Fields fields = new Fields(Json.parse(out.toString("UTF-8")));
            List<Message> found = new ArrayList<Message>();
            for (Fields one : fields.objects("messages")) found.add(new Message(one.text("role"), one.text("content")));
            messages.addAll(found);
            return fields.text("system");
        } catch (IOException error) {
            return "";
        } catch (IllegalArgumentException error) {
            return "";
        }
    }

    void save(String system, List<Message> messages) {
        List<Object> rows = new ArrayList<Object>();
        for (Message message : messages) {
            Map<String, Object> row = new LinkedHashMap<String, Object>();
            row.put("role", message.role);
            row.put("content", message.content);
            rows.add(row);
        }
        Map<String, Object> document = new LinkedHashMap<String, Object>();
        document.put("system", system);
        document.put("messages", rows);
        File part = new File(files, "chat.json.part");
        try {
            FileOutputStream out = new FileOutputStream(part);
            out.write(Json.write(document).getBytes("UTF-8"));
            out.close();
            part.renameTo(chat());
        } catch (IOException error) {
            part.delete(); // a full disk costs the memory of this conversation, not the conversation
        }
    }
}
