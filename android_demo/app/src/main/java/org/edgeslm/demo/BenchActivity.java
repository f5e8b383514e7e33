package org.edgeslm.demo;

import android.app.Activity;
import android.content.ActivityNotFoundException;
import android.content.Intent;
import android.net.Uri;
import android.os.Bundle;
import android.util.TypedValue;
import android.view.View;
import android.view.WindowManager;
import android.widget.Button;
import android.widget.LinearLayout;
import android.widget.ProgressBar;
import android.widget.TextView;
import java.io.IOException;
import java.io.OutputStream;
import java.util.Locale;
import org.edgeslm.core.BenchDocument;

/** What `edgeslm bench` would measure, on this phone; its document can be shared or saved. */
public final class BenchActivity extends Activity implements Host.Watcher, View.OnClickListener {
    private static final int SAVE = 1;
    private static final int[] LABELS = {
        R.string.metric_load, R.string.metric_time_to_first_token, R.string.metric_prefill, R.string.metric_decode,
        R.string.metric_token_latency, R.string.metric_rss_anon_peak, R.string.metric_rss_file_peak,
        R.string.metric_pss_peak, R.string.metric_vm_hwm, R.string.metric_swap_peak
    };

    private Host host;
    private BenchDocument shown;
    private boolean saved;

    @Override
    protected void onCreate(Bundle state) {
        super.onCreate(state);
        setContentView(R.layout.bench);
        host = DemoApp.host(this);
        for (int id : new int[] {R.id.back, R.id.run, R.id.share, R.id.save}) findViewById(id).setOnClickListener(this);
    }

    @Override
    protected void onStart() {
        super.onStart();
        host.watch(this);
    }

    @Override
    protected void onStop() {
        host.unwatch(this);
        if (!isChangingConfigurations() && host.state() == Host.State.BENCHING) host.stop(); // a phone asleep measures nothing
        super.onStop();
    }

    @Override
    public void onClick(View view) {
        int id = view.getId();
        if (id == R.id.back) finish();
        else if (id == R.id.run && host.state() == Host.State.BENCHING) host.stop();
        else if (id == R.id.run) host.runBench();
        else if (host.bench() != null && id == R.id.share) share(host.bench().json());
        else if (host.bench() != null) save();
    }

    private void share(String json) {
        Intent intent = new Intent(Intent.ACTION_SEND).setType("application/json");
        intent.putExtra(Intent.EXTRA_TEXT, json).putExtra(Intent.EXTRA_TITLE, "edgeslm-bench.json");
        startActivity(Intent.createChooser(intent, getString(R.string.share)));
    }

    private void save() {
        Intent intent = new Intent(Intent.ACTION_CREATE_DOCUMENT).addCategory(Intent.CATEGORY_OPENABLE);
        intent.setType("application/json").putExtra(Intent.EXTRA_TITLE, "edgeslm-bench.json");
        try {
            startActivityForResult(intent, SAVE);
        } catch (ActivityNotFoundException error) {
            host.failed(error);
        }
    }

    @Override
    protected void onActivityResult(int request, int result, Intent data) {
        if (request != SAVE || result != RESULT_OK || data == null || host.bench() == null) return;
        Uri uri = data.getData();
        try {
            OutputStream out = getContentResolver().openOutputStream(uri);
            out.write(host.bench().json().getBytes("UTF-8"));
            out.close();
            saved = true;
            changed();
        } catch (IOException error) {
            host.failed(error);
        }
    }

    @Override
    public void changed() {
        boolean running = host.state() == Host.State.BENCHING;
        boolean free = running || host.state() == Host.State.IDLE;
        if (running) getWindow().addFlags(WindowManager.LayoutParams.FLAG_KEEP_SCREEN_ON);
        else getWindow().clearFlags(WindowManager.LayoutParams.FLAG_KEEP_SCREEN_ON);
        Button run = (Button) findViewById(R.id.run);
        run.setEnabled(free);
        run.setText(running ? R.string.stop : host.bench() == null ? R.string.bench_run : R.string.bench_again);
        show(R.id.share, host.bench() != null);
        show(R.id.save, host.bench() != null);
        ProgressBar bar = (ProgressBar) findViewById(R.id.progress);
        bar.setVisibility(running ? View.VISIBLE : View.INVISIBLE);
        bar.setMax((int) Math.max(1, host.total()));
        bar.setProgress((int) host.done());
        ((TextView) findViewById(R.id.note)).setText(note(running));
        if (shown != host.bench() || running) figures(host.bench());
    }

    private String note(boolean running) {
        if (running) return getString(R.string.bench_round, (int) Math.min(host.done() + 1, host.total()), (int) host.total());
        if (!host.problem().isEmpty()) return host.problem();
        if (host.bench() == null) return "";
        return host.bench().steady() ? saved ? getString(R.string.saved) : "" : getString(R.string.bench_unsteady);
    }

    private void figures(BenchDocument document) {
        if (shown != document) saved = false;
        shown = document;
        LinearLayout list = (LinearLayout) findViewById(R.id.figures);
        list.removeAllViews();
        list.setVisibility(document == null ? View.GONE : View.VISIBLE);
        if (document == null) return;
        for (BenchDocument.Figure figure : document.figures()) list.addView(row(figure));
    }

    private View row(BenchDocument.Figure figure) {
        LinearLayout row = new LinearLayout(this);
        int gap = getResources().getDimensionPixelSize(R.dimen.gap_small);
        row.setPadding(0, gap, 0, gap);
        LinearLayout names = new LinearLayout(this);
        names.setOrientation(LinearLayout.VERTICAL);
        names.addView(text(label(figure.metric), R.dimen.text_body, R.color.ink));
        names.addView(text(figure.metric, R.dimen.text_small, R.color.ink_soft));
        row.addView(names, new LinearLayout.LayoutParams(0, LinearLayout.LayoutParams.WRAP_CONTENT, 1));
        row.addView(text(value(figure), R.dimen.text_figure, R.color.accent));
        return row;
    }

    private TextView text(String words, int size, int color) {
        TextView view = new TextView(this);
        view.setText(words);
        view.setTextColor(getColor(color));
        view.setTextSize(TypedValue.COMPLEX_UNIT_PX, getResources().getDimension(size));
        return view;
    }

    /** The metric in the user's language: the resource is called like the field. */
    private String label(String metric) {
        for (int id : LABELS) if (getResources().getResourceEntryName(id).equals("metric_" + metric)) return getString(id);
        return metric;
    }

    private String value(BenchDocument.Figure figure) {
        double median = figure.median;
        if (figure.unit.equals("bytes")) return getString(R.string.unit_megabytes, ChatActivity.megabytes((long) median));
        if (figure.unit.equals("tokens/s")) return getString(R.string.unit_tokens, number("%.1f", median));
        if (median < 1) return getString(R.string.unit_milliseconds, number("%.1f", 1000 * median));
        return getString(R.string.unit_seconds, number("%.2f", median));
    }

    private static String number(String format, double value) {
        return String.format(Locale.getDefault(), format, value);
    }

    private void show(int id, boolean shown) {
        findViewById(id).setVisibility(shown ? View.VISIBLE : View.GONE);
    }
}
