package org.edgeslm.core;

import java.util.ArrayList;
import java.util.Collections;
import java.util.HashMap;
import java.util.List;
import java.util.Map;

/**
 * A chat template as a bundle has it: fixed texts around each message, according to its role. The program that made the
 * bundle has proven it equal to the model's own template. A model without one only goes on with a text.
 */
public final class Template {
    /** What Python's str.strip, which templates call, takes for white space; Java's own trim takes other characters. */
    private static final String WHITE = "\t\n\u000b\f\r\u001c\u001d\u001e\u001f \u0085\u00a0\u1680\u2000\u2001\u2002\u2003"
            + "\u2004\u2005\u2006\u2007\u2008\u2009\u200a\u2028\u2029\u202f\u205f\u3000";

    private final String start;
    private final String defaultSystem;
    private final String generation;
    private final Map<String, List<String[]>> roles = new HashMap<String, List<String[]>>();

    /** @throws IllegalArgumentException for a manifest's "template" that is none */
    Template(Fields fields) {
        start = fields.text("start");
        defaultSystem = fields.text("default_system");
        generation = fields.text("generation");
        Fields given = fields.object("roles");
        for (String role : given.names()) {
            List<String[]> segments = new ArrayList<String[]>();
            for (Fields segment : given.objects(role)) {
                segments.add(segment.has("text") ? new String[] {"text", segment.text("text")}
                        : new String[] {"content", segment.text("content")});
            }
            roles.put(role, segments);
        }
        if (!roles.containsKey(Message.USER) || !roles.containsKey(Message.ASSISTANT)) {
            throw new IllegalArgumentException("the template lacks a role");
        }
    }

    /** Whether the model's own template knows system texts. */
    public boolean takesSystem() {
        return roles.containsKey(Message.SYSTEM);
    }

    /** The text of a conversation; with `answer` it ends where the assistant starts to speak. */
    public String apply(List<Message> messages, boolean answer) {
        StringBuilder out = new StringBuilder(start);
        if (messages.isEmpty() || !messages.get(0).role.equals(Message.SYSTEM)) out.append(defaultSystem);
        for (Message message : messages) {
            List<String[]> segments = roles.get(message.role);
            if (segments == null) throw new IllegalArgumentException("the template has no role '" + message.role + "'");
            for (String[] segment : segments) {
                boolean literal = segment[0].equals("text");
                out.append(literal ? segment[1] : segment[1].equals("trimmed") ? strip(message.content) : message.content);
            }
        }
        if (answer) out.append(generation);
        return out.toString();
    }

    /** What the model continues when there is no template: all that was said, without marks. */
    static String plain(List<Message> messages) {
        StringBuilder out = new StringBuilder();
        for (Message message : messages) {
            if (!message.role.equals(Message.SYSTEM)) out.append(message.content);
        }
        return out.toString();
    }

    static String strip(String text) {
        int from = 0;
        int to = text.length();
        while (from < to && WHITE.indexOf(text.charAt(from)) >= 0) from++;
        while (to > from && WHITE.indexOf(text.charAt(to - 1)) >= 0) to--;
        return text.substring(from, to);
    }

    List<String> roleNames() {
        List<String> names = new ArrayList<String>(roles.keySet());
        Collections.sort(names);
        return names;
    }
}
