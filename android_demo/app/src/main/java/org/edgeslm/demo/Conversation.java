package org.edgeslm.demo;

import android.app.Activity;
import android.util.TypedValue;
import android.view.Gravity;
import android.view.View;
import android.widget.LinearLayout;
import android.widget.ScrollView;
import android.widget.TextView;
import java.util.ArrayList;
import java.util.List;
import org.edgeslm.core.Message;

/** The bubbles. Those that are there stay; only the last one grows while an answer is written. */
final class Conversation {
    private final Activity activity;
    private final ScrollView scroll;
    private final LinearLayout list;
    private final List<TextView> bubbles = new ArrayList<TextView>();
    private final List<Message> shown = new ArrayList<Message>();
    private TextView note;

    Conversation(Activity activity) {
        this.activity = activity;
        scroll = (ScrollView) activity.findViewById(R.id.scroll);
        list = (LinearLayout) activity.findViewById(R.id.messages);
    }

    void show(Host host) {
        boolean atEnd = scroll.getScrollY() + scroll.getHeight() >= list.getHeight() - size(R.dimen.bar_height);
        List<Message> wanted = new ArrayList<Message>(host.messages());
        boolean asked = !wanted.isEmpty() && wanted.get(wanted.size() - 1).role.equals(Message.USER);
        boolean answering = host.state() == Host.State.ANSWERING || host.state() == Host.State.LOADING;
        if (asked && answering) {
            String words = host.partial().isEmpty() ? activity.getString(R.string.thinking) : host.partial();
            wanted.add(new Message(Message.ASSISTANT, words));
        }
        int same = 0;
        while (same < shown.size() && same < wanted.size() && shown.get(same).role.equals(wanted.get(same).role)) same++;
        while (bubbles.size() > same) {
            list.removeView(bubbles.remove(bubbles.size() - 1));
            shown.remove(shown.size() - 1);
        }
        for (int i = 0; i < wanted.size(); i++) {
            Message message = wanted.get(i);
            if (i == bubbles.size()) add(message);
            else if (!shown.get(i).content.equals(message.content)) fill(i, message);
        }
        forgotten(host.forgotten() > 0);
        if (atEnd) toEnd();
    }

    private void add(Message message) {
        boolean user = message.role.equals(Message.USER);
        TextView bubble = new TextView(activity);
        bubble.setBackgroundResource(user ? R.drawable.bubble_user : R.drawable.bubble_model);
        bubble.setTextColor(activity.getColor(user ? R.color.on_bubble_user : R.color.ink));
        bubble.setTextSize(TypedValue.COMPLEX_UNIT_PX, activity.getResources().getDimension(R.dimen.text_body));
        bubble.setLineSpacing(0, 1.15f);
        bubble.setTextIsSelectable(true);
        int x = size(R.dimen.bubble_padding_x);
        int y = size(R.dimen.bubble_padding_y);
        bubble.setPadding(x, y, x, y);
        LinearLayout.LayoutParams place = new LinearLayout.LayoutParams(LinearLayout.LayoutParams.WRAP_CONTENT, LinearLayout.LayoutParams.WRAP_CONTENT);
        place.gravity = user ? Gravity.END : Gravity.START;
        place.topMargin = size(user ? R.dimen.gap : R.dimen.gap_small);
        if (user) place.setMarginStart(size(R.dimen.bubble_inset));
        else place.setMarginEnd(size(R.dimen.bubble_inset));
        list.addView(bubble, place);
        bubbles.add(bubble);
        shown.add(message);
        fill(bubbles.size() - 1, message);
    }

    private void fill(int i, Message message) {
        boolean user = message.role.equals(Message.USER);
        shown.set(i, message);
        bubbles.get(i).setText(message.content);
        bubbles.get(i).setContentDescription(activity.getString(user ? R.string.said_you : R.string.said_model, message.content));
    }

    private void forgotten(boolean some) {
        if (note == null && some) {
            note = new TextView(activity);
            note.setText(R.string.forgotten);
            note.setTextColor(activity.getColor(R.color.ink_soft));
            note.setGravity(Gravity.CENTER);
            note.setPadding(0, size(R.dimen.gap), 0, 0);
            list.addView(note, 0);
        }
        if (note != null) note.setVisibility(some ? View.VISIBLE : View.GONE);
    }

    private void toEnd() {
        scroll.post(new Runnable() {
            @Override
            public void run() {
                scroll.scrollTo(0, list.getHeight());
            }
        });
    }

    private int size(int id) {
        return activity.getResources().getDimensionPixelSize(id);
    }
}
