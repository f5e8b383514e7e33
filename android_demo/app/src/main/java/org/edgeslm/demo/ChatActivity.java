package org.edgeslm.demo;

import android.app.Activity;
import android.app.AlertDialog;
import android.content.ActivityNotFoundException;
import android.content.DialogInterface;
import android.content.Intent;
import android.os.Bundle;
import android.text.InputType;
import android.view.Gravity;
import android.view.View;
import android.view.View.OnClickListener;
import android.widget.AdapterView;
import android.widget.ArrayAdapter;
import android.widget.Button;
import android.widget.EditText;
import android.widget.FrameLayout;
import android.widget.ImageButton;
import android.widget.LinearLayout;
import android.widget.ListPopupWindow;
import android.widget.ProgressBar;
import android.widget.TextView;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;
import java.util.Locale;
import org.edgeslm.core.Manifest;

/** The conversation; before there is a model, the way to one. It shows what the Host knows and decides nothing. */
public final class ChatActivity extends Activity implements Host.Watcher, OnClickListener {
    private static final int CHOOSE = 1;
    private static final int[] TRIES = {R.string.try_1, R.string.try_2, R.string.try_3};

    private Host host;
    private Conversation conversation;
    private EditText text;

    @Override
    protected void onCreate(Bundle saved) {
        super.onCreate(saved);
        setContentView(R.layout.chat);
        host = DemoApp.host(this);
        conversation = new Conversation(this);
        text = (EditText) findViewById(R.id.text);
        for (int id : new int[] {R.id.send, R.id.fresh, R.id.bench, R.id.more, R.id.choose}) {
            findViewById(id).setOnClickListener(this);
        }
        LinearLayout tries = (LinearLayout) findViewById(R.id.tries);
        for (int id : TRIES) tries.addView(suggestion(getString(id)));
    }

    private View suggestion(final String words) {
        Button button = new Button(this, null, 0, R.style.ActionQuiet);
        button.setText(words);
        button.setOnClickListener(new OnClickListener() {
            @Override
            public void onClick(View view) {
                host.ask(words);
            }
        });
        LinearLayout.LayoutParams place = new LinearLayout.LayoutParams(LinearLayout.LayoutParams.MATCH_PARENT, LinearLayout.LayoutParams.WRAP_CONTENT);
        place.topMargin = getResources().getDimensionPixelSize(R.dimen.gap_small);
        button.setLayoutParams(place);
        return button;
    }

    @Override
    protected void onStart() {
        super.onStart();
        host.watch(this);
    }

    @Override
    protected void onStop() {
        host.unwatch(this); // an answer goes on; it is there when the user comes back
        super.onStop();
    }

    @Override
    public void onClick(View view) {
        int id = view.getId();
        if (id == R.id.fresh) host.clear();
        else if (id == R.id.bench) startActivity(new Intent(this, BenchActivity.class));
        else if (id == R.id.more) menu(view);
        else if (id == R.id.choose) choose();
        else if (busy()) host.stop();
        else send();
    }

    private boolean busy() {
        Host.State state = host.state();
        return state == Host.State.ANSWERING || state == Host.State.LOADING;
    }

    private void send() {
        String words = text.getText().toString();
        if (words.trim().isEmpty() || host.state() != Host.State.IDLE) return;
        text.setText("");
        host.ask(words);
    }

    private void menu(View anchor) {
        List<Integer> items = new ArrayList<Integer>();
        if (host.manifest() != null) items.addAll(Arrays.asList(R.string.system_prompt, R.string.about_model));
        items.add(R.string.import_model);
        final Integer[] ids = items.toArray(new Integer[0]);
        String[] words = new String[ids.length];
        for (int i = 0; i < words.length; i++) words[i] = getString(ids[i]);
        final ListPopupWindow popup = new ListPopupWindow(this);
        popup.setAnchorView(anchor);
        popup.setModal(true);
        popup.setWidth(getResources().getDimensionPixelSize(R.dimen.menu_width));
        popup.setDropDownGravity(Gravity.END);
        popup.setAdapter(new ArrayAdapter<String>(this, android.R.layout.simple_list_item_1, words));
        popup.setOnItemClickListener(new AdapterView.OnItemClickListener() {
            @Override
            public void onItemClick(AdapterView<?> list, View row, int at, long id) {
                popup.dismiss();
                chosen(ids[at]);
            }
        });
        popup.show();
    }

    private void chosen(int id) {
        if (id == R.string.system_prompt) editSystem();
        else if (id == R.string.about_model) about();
        else choose();
    }

    private void choose() {
        Intent intent = new Intent(Intent.ACTION_OPEN_DOCUMENT);
        intent.addCategory(Intent.CATEGORY_OPENABLE);
        intent.setType("*/*");
        try {
            startActivityForResult(intent, CHOOSE);
        } catch (ActivityNotFoundException error) {
            host.failed(error); // a device without a file picker
        }
    }

    @Override
    protected void onActivityResult(int request, int result, Intent data) {
        if (request == CHOOSE && result == RESULT_OK && data != null && data.getData() != null) host.importFrom(data.getData());
    }

    private void editSystem() {
        boolean knows = host.manifest().template != null && host.manifest().template.takesSystem();
        final EditText field = new EditText(this);
        field.setInputType(InputType.TYPE_CLASS_TEXT | InputType.TYPE_TEXT_FLAG_MULTI_LINE | InputType.TYPE_TEXT_FLAG_CAP_SENTENCES);
        field.setHint(R.string.system_hint);
        field.setMinLines(3);
        field.setText(host.system());
        FrameLayout frame = new FrameLayout(this);
        int gap = getResources().getDimensionPixelSize(R.dimen.gap);
        frame.setPadding(gap, gap, gap, 0);
        frame.addView(field);
        AlertDialog.Builder dialog = new AlertDialog.Builder(this).setTitle(R.string.system_prompt);
        if (!knows) {
            dialog.setMessage(R.string.system_unknown).setPositiveButton(R.string.back, null).show();
            return;
        }
        dialog.setView(frame);
        dialog.setNegativeButton(R.string.cancel, null);
        dialog.setPositiveButton(R.string.keep, new DialogInterface.OnClickListener() {
            @Override
            public void onClick(DialogInterface shown, int which) {
                host.setSystem(field.getText().toString());
            }
        });
        dialog.show();
    }

    private void about() {
        Manifest m = host.manifest();
        String words = getString(R.string.about_text, m.name, m.baseModel, String.valueOf(m.parameters / 1000000), megabytes(m.modelBytes), m.licence);
        new AlertDialog.Builder(this).setTitle(R.string.about_model).setMessage(words).setPositiveButton(R.string.back, null).show();
    }

    static String megabytes(long bytes) {
        return String.format(Locale.getDefault(), "%d", Math.max(0, bytes) / 1000000);
    }

    @Override
    public void changed() {
        Host.State state = host.state();
        Manifest manifest = host.manifest();
        boolean talks = !host.messages().isEmpty() && manifest != null && state != Host.State.UNPACKING;
        ((TextView) findViewById(R.id.title)).setText(manifest == null ? getString(R.string.app_name) : manifest.name);
        ((TextView) findViewById(R.id.status)).setText(status(state));
        show(R.id.empty, !talks);
        show(R.id.scroll, talks);
        show(R.id.input, manifest != null && state != Host.State.UNPACKING);
        show(R.id.problem, !host.problem().isEmpty());
        ((TextView) findViewById(R.id.problem)).setText(host.problem());
        findViewById(R.id.bench).setEnabled(manifest != null);
        ImageButton send = (ImageButton) findViewById(R.id.send);
        send.setImageResource(busy() ? R.drawable.ic_stop : R.drawable.ic_send);
        send.setContentDescription(getString(busy() ? R.string.stop : R.string.send));
        if (talks) conversation.show(host);
        else empty(state, manifest);
    }

    private String status(Host.State state) {
        String memory = megabytes(host.memoryBytes());
        if (state == Host.State.LOADING) return getString(R.string.status_loading);
        if (state == Host.State.BENCHING) return getString(R.string.status_bench);
        if (host.manifest() == null) return getString(R.string.status_none);
        if (host.speed() <= 0) return getString(R.string.status_idle, memory);
        return getString(R.string.status_speed, String.format(Locale.getDefault(), "%.1f", host.speed()), memory);
    }

    /** The way to a model, or what to ask first. */
    private void empty(Host.State state, Manifest manifest) {
        boolean unpacking = state == Host.State.UNPACKING;
        TextView title = (TextView) findViewById(R.id.empty_title);
        TextView words = (TextView) findViewById(R.id.empty_text);
        title.setText(unpacking ? R.string.unpacking : manifest == null ? R.string.setup_title : R.string.welcome_title);
        if (unpacking) words.setText(getString(R.string.unpacking_share, megabytes(host.done()), megabytes(host.total())));
        else words.setText(manifest == null ? R.string.setup_text : R.string.welcome_text);
        show(R.id.tries, !unpacking && manifest != null);
        show(R.id.choose, !unpacking && manifest == null);
        ProgressBar bar = (ProgressBar) findViewById(R.id.progress);
        bar.setVisibility(unpacking ? View.VISIBLE : View.GONE);
        bar.setIndeterminate(host.total() == 0);
        if (host.total() > 0) bar.setProgress((int) (1000 * host.done() / host.total()));
    }

    private void show(int id, boolean shown) {
        findViewById(id).setVisibility(shown ? View.VISIBLE : View.GONE);
    }
}
