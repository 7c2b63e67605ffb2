//! What `bench engine` measured, in tables: a column for each run, each figure with its share of the machine's limit.

use banyan_engine::{
    bench::{Breakdown, Decode, FirstToken},
    limits::Limits,
};

use crate::{
    bench::engine::{Measured, Run},
    output,
};

/// Every row, for all runs side by side.
pub(crate) fn overview(measured: &Measured) -> String {
    let Some(first) = measured.runs.first() else { return String::new() };
    let machine = &measured.machine;
    let mut text = format!(
        "{} on {} ({}); {}, {}\n\n",
        first.report.model,
        first.report.device,
        first.report.kernels,
        machine.processor,
        output::count(machine.cores, "core"),
    );
    let cell = |value: Option<String>| value.unwrap_or_else(|| "-".to_owned());
    let mut rows = Vec::new();
    let mut row = |name: String, value: &dyn Fn(&Run) -> Option<String>| {
        let values = measured.runs.iter().map(|run| cell(value(run)));
        rows.push(std::iter::once(name).chain(values).collect::<Vec<_>>());
    };
    row(String::new(), &|run| {
        Some(format!("{}, {}", run.report.dtype, output::count(run.report.threads, "thread")).to_uppercase())
    });
    for (at, decode) in first.report.decode.iter().enumerate() {
        let of = |run: &Run, f: &dyn Fn(&Decode) -> String| run.report.decode.get(at).map(f);
        let many = output::count(decode.batch as usize, "sequence");
        row(format!("{many}, tokens/s"), &|run| of(run, &decode_cell));
        row("  prompts included".to_owned(), &|run| of(run, &|decode| format!("{:.1}", decode.tokens_per_s_with_prompts)));
    }
    for (at, prompt) in first.report.first_token.iter().enumerate() {
        let name = format!("first token of {}", output::count(prompt.prompt_tokens as usize, "token"));
        row(name, &|run| run.report.first_token.get(at).map(first_token_cell));
    }
    if measured.runs.iter().any(|run| run.http.is_some()) {
        row("over HTTP, tokens/s".to_owned(), &|run| http_cell(run));
    }
    let megabytes = |bytes: Option<u64>| bytes.map(|bytes| format!("{:.0} MB", bytes as f64 / 1e6));
    row("memory, first batch".to_owned(), &|run| megabytes(run.report.memory.first_batch));
    row("  peak, loading included".to_owned(), &|run| megabytes(run.report.memory.first_batch_peak));
    row("memory, peak of all".to_owned(), &|run| megabytes(run.report.memory.peak));
    row("loaded in".to_owned(), &|run| Some(output::microseconds((run.load_s * 1e6) as u64)));
    text.push_str(&output::table(&rows));
    text.push_str("\nA share is that of what the machine could do at best, measured before and after each case.\n");
    let all: Vec<Limits> = measured.runs.iter().flat_map(limits).collect();
    if !all.is_empty() {
        text.push_str(&said(&all));
    }
    text
}

/// Where the time of each case goes.
pub(crate) fn profiles(measured: &Measured) -> String {
    let mut text = String::new();
    for run in &measured.runs {
        let mut add = |what: String, breakdown: &Option<Breakdown>| {
            if let Some(breakdown) = breakdown {
                text.push_str(&profile(&format!("{}: {what}", run.report.dtype), breakdown));
            }
        };
        for decode in &run.report.decode {
            add(format!("a step of {}", output::count(decode.batch as usize, "sequence")), &decode.step);
        }
        for prompt in &run.report.first_token {
            add(format!("a prompt of {}", output::count(prompt.prompt_tokens as usize, "token")), &prompt.prompt);
        }
    }
    text
}

fn profile(title: &str, breakdown: &Breakdown) -> String {
    let mut rows = vec![["PART", "CALLS", "ms", "OF ALL", "MB", "Mop", "LEAST ms", "OF LIMIT"].map(str::to_owned).to_vec()];
    for part in &breakdown.parts {
        let moved = |figure: f64| if figure > 0.0 { format!("{:.1}", figure / 1e6) } else { String::new() };
        rows.push(vec![
            part.part.clone(),
            format!("{:.0}", part.calls),
            format!("{:.3}", part.ms),
            percent(part.ms / breakdown.ms),
            moved(part.bytes),
            moved(part.operations),
            part.limit_ms.map_or_else(String::new, |limit| format!("{limit:.3}")),
            part.limit_ms.map_or_else(String::new, |limit| percent(limit / part.ms)),
        ]);
    }
    let whole = breakdown.limit_ms.map_or_else(String::new, |limit| {
        format!(", at least {limit:.3} ms by the machine's limits ({})", percent(limit / breakdown.ms))
    });
    format!("{title}: {:.3} ms{whole}\n{}\n", breakdown.ms, output::table(&rows))
}

fn decode_cell(decode: &Decode) -> String {
    let share = decode.limit_tokens_per_s.map(|limit| format!("  {}", percent(decode.tokens_per_s / limit)));
    format!("{:.1}{}", decode.tokens_per_s, share.unwrap_or_default())
}

fn first_token_cell(prompt: &FirstToken) -> String {
    let share = prompt.limit_ms.map(|limit| format!("  {}", percent(limit / prompt.ms)));
    format!("{:.1} ms{}", prompt.ms, share.unwrap_or_default())
}

/// Beside the largest batch without HTTP.
fn http_cell(run: &Run) -> Option<String> {
    let http = run.http.as_ref()?;
    let direct = run.report.decode.iter().find(|decode| decode.batch == u32::from(http.concurrency));
    let share =
        direct.map(|direct| format!("  {} of the engine's", percent(http.tokens_per_s / direct.tokens_per_s_with_prompts)));
    Some(format!("{:.1}{}", http.tokens_per_s, share.unwrap_or_default()))
}

/// What was measured beside a run's cases.
fn limits(run: &Run) -> impl Iterator<Item = Limits> {
    let report = &run.report;
    report.decode.iter().filter_map(|row| row.limits).chain(report.first_token.iter().filter_map(|row| row.limits))
}

/// The least, the median and the most of each limit.
pub(crate) fn said(all: &[Limits]) -> String {
    let line = |name: &str, unit: &str, of: &dyn Fn(&Limits) -> Option<f64>| {
        let mut values: Vec<f64> = all.iter().filter_map(of).collect();
        values.sort_by(f64::total_cmp);
        let (least, most) = (values.first()?, values.last()?);
        Some(format!("  {name}  {:.1} {unit} ({least:.1}–{most:.1})\n", values[values.len() / 2]))
    };
    let lines = [
        line("memory reads     ", "GB/s", &|limits| Some(limits.memory_gb_per_s)),
        line("f32              ", "Gop/s", &|limits| Some(limits.f32_gop_per_s)),
        line("bf16 dot products", "Gop/s", &|limits| limits.bf16_gop_per_s),
        line("int8 dot products", "Gop/s", &|limits| limits.int8_gop_per_s),
    ];
    let lines: String = lines.into_iter().flatten().collect();
    format!("The machine at best (median, least–most):\n{lines}")
}

fn percent(share: f64) -> String {
    format!("{:.0} %", share * 100.0)
}

#[cfg(test)]
pub(crate) mod tests {
    use banyan_engine::bench::{Memory, Report, Spent};

    use super::*;
    use crate::bench::machine::Machine;

    const LIMITS: Limits =
        Limits { threads: 2, memory_gb_per_s: 37.0, f32_gop_per_s: 234.0, bf16_gop_per_s: None, int8_gop_per_s: Some(937.0) };

    pub(crate) fn measured() -> Measured {
        let step = Breakdown {
            ms: 8.0,
            limit_ms: Some(6.0),
            parts: vec![Spent {
                part: "attention".into(),
                calls: 12.0,
                ms: 8.0,
                bytes: 2e6,
                operations: 3e6,
                limit_ms: Some(2.0),
            }],
        };
        let decode = |batch| Decode {
            batch,
            tokens_per_s: 125.0,
            rounds_tokens_per_s: [120.0, 130.0],
            tokens_per_s_with_prompts: 100.0,
            limit_tokens_per_s: Some(250.0),
            limits: Some(LIMITS),
            step: (batch == 1).then(|| step.clone()),
        };
        let report = Report {
            model: "gpt2".into(),
            dtype: "f32".into(),
            device: "cpu".into(),
            kernels: "avx2".into(),
            threads: 2,
            decode: vec![decode(1), decode(8)],
            first_token: vec![FirstToken {
                prompt_tokens: 32,
                ms: 12.34,
                rounds_ms: [12.0, 13.0],
                limit_ms: Some(6.17),
                limits: None,
                prompt: None,
            }],
            memory: Memory { first_batch: Some(512_000_000), first_batch_peak: None, peak: Some(812_000_000) },
        };
        let machine = Machine { processor: "A CPU".into(), cores: 2, memory: None, version: "1".into() };
        Measured { machine, runs: vec![Run { load_s: 0.5, report, http: None }] }
    }

    #[test]
    fn a_run_is_a_column_and_each_figure_has_its_share() {
        let expected = "\
gpt2 on cpu (avx2); A CPU, 2 cores

                          F32, 2 THREADS
1 sequence, tokens/s      125.0  50 %
  prompts included        100.0
8 sequences, tokens/s     125.0  50 %
  prompts included        100.0
first token of 32 tokens  12.3 ms  50 %
memory, first batch       512 MB
  peak, loading included  -
memory, peak of all       812 MB
loaded in                 500.0 ms

A share is that of what the machine could do at best, measured before and after each case.
The machine at best (median, least–most):
  memory reads       37.0 GB/s (37.0–37.0)
  f32                234.0 Gop/s (234.0–234.0)
  int8 dot products  937.0 Gop/s (937.0–937.0)
";
        assert_eq!(overview(&measured()), expected);
    }

    #[test]
    fn a_profile_is_a_table_of_parts() {
        let expected = "\
f32: a step of 1 sequence: 8.000 ms, at least 6.000 ms by the machine's limits (75 %)
PART       CALLS  ms     OF ALL  MB   Mop  LEAST ms  OF LIMIT
attention  12     8.000  100 %   2.0  3.0  2.000     25 %

";
        assert_eq!(profiles(&measured()), expected);
    }

    #[test]
    fn what_is_printed_as_json_is_read_back() {
        let text = serde_json::to_string(&measured()).unwrap();
        let read: Measured = serde_json::from_str(&text).unwrap();
        assert_eq!(read.runs[0].report, measured().runs[0].report);
    }
}
