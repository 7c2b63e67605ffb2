//! `banyan bench load`: asks an API of OpenAI's dialect for streamed answers, and tells tokens a second, waiting times, and how many
//! answers were as good as they have to be. It measures Banyan and others alike.

mod crowd;
mod picture;
mod question;
mod stream;

use std::{fs, path::PathBuf, sync::Arc, time::Duration};

use anyhow::Context as _;
use serde::{Deserialize, Serialize};

use self::crowd::Crowd;
use crate::{
    args,
    bench::{histogram::Bar, latencies::Summary},
    exit::{Code, Failure},
    http::{Connection, Target},
    output::{self, Format},
};

/// Bars of a histogram.
const BARS: usize = 20;

#[derive(clap::Args)]
pub(crate) struct Args {
    /// The API: that of `banyan up`, or another server's; with a path where its endpoints are not below /v1.
    #[arg(long, value_name = "URL", default_value = "http://127.0.0.1:8080")]
    url: String,
    /// The key to ask with.
    #[arg(long, env = "BANYAN_API_KEY", value_name = "KEY", hide_env_values = true)]
    key: Option<String>,
    /// The model to ask for; by default the first that GET /v1/models lists.
    #[arg(long, value_name = "NAME")]
    model: Option<String>,
    /// How many clients ask; each asks again when its answer has ended.
    #[arg(long, value_name = "N", default_value = "64", value_parser = clap::value_parser!(u16).range(1..=4096))]
    concurrency: u16,
    /// How many answers each client reads.
    #[arg(long, value_name = "N", default_value = "3", value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,
    /// Instead, clients come so often a second, at random times, whatever became of those before them.
    #[arg(long, value_name = "PER_SECOND", value_parser = rate, conflicts_with_all = ["concurrency", "rounds"])]
    rate: Option<f64>,
    /// How long clients ask: instead of --rounds; with --rate 10s by default.
    #[arg(long, value_name = "TIME", value_parser = args::duration, conflicts_with = "rounds")]
    time: Option<Duration>,
    /// How long prompts are: words of a chat's message, or token ids of a completion.
    #[arg(long, value_name = "N", default_value = "32", value_parser = clap::value_parser!(u32).range(1..=100_000))]
    prompt: u32,
    /// Tokens of each answer; servers that don't know `ignore_eos` may end it before.
    #[arg(long = "new", value_name = "N", default_value = "128", value_parser = clap::value_parser!(u32).range(1..))]
    new_tokens: u32,
    /// What is asked.
    #[arg(long, value_enum, default_value = "chat")]
    endpoint: Endpoint,
    #[command(flatten)]
    objective: Objective,
    /// Where to draw how often each duration came: a .svg or an .html.
    #[arg(long, value_name = "FILE")]
    plot: Option<PathBuf>,
    /// How to print it.
    #[arg(short = 'o', long = "output", value_name = "FORMAT", value_enum, default_value = "table")]
    output: Format,
}

/// What to ask, and how often.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    pub(crate) pace: Pace,
    /// Words, or token ids.
    pub(crate) prompt: u32,
    pub(crate) new_tokens: u32,
    pub(crate) endpoint: Endpoint,
    pub(crate) objective: Objective,
}

/// Who asks when.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Pace {
    /// Clients that ask again when their answers have ended: so many times, or for so long.
    Closed { clients: u16, rounds: u32, time: Option<Duration> },
    /// Clients that come at their times.
    Open { per_s: f64, time: Duration },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Endpoint {
    /// /v1/chat/completions, with a message of words.
    Chat,
    /// /v1/completions, with a prompt of token ids.
    Completions,
}

/// What an answer has to keep to, to count as good.
#[derive(Clone, Debug, Default, PartialEq, clap::Args)]
pub(crate) struct Objective {
    /// Counts as good only what has its first token within that time …
    #[arg(long, value_name = "TIME", value_parser = args::duration)]
    first_token_within: Option<Duration>,
    /// … a token within that time of the one before, on average …
    #[arg(long, value_name = "TIME", value_parser = args::duration)]
    each_token_within: Option<Duration>,
    /// … and its end within that time.
    #[arg(long, value_name = "TIME", value_parser = args::duration)]
    answer_within: Option<Duration>,
}

impl Objective {
    fn is_met(&self, first: Duration, each: Option<Duration>, whole: Duration) -> bool {
        let within = |took: Duration, most: Option<Duration>| most.is_none_or(|most| took <= most);
        within(first, self.first_token_within)
            && within(each.unwrap_or_default(), self.each_token_within)
            && within(whole, self.answer_within)
    }

    fn is_any(&self) -> bool {
        *self != Objective::default()
    }
}

/// What the clients saw.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Report {
    pub(crate) model: String,
    /// Clients that asked all the time; 0 where they came at their times.
    pub(crate) concurrency: u16,
    /// How often they came, of themselves; and how late they were, for they share the machine with what they measure.
    pub(crate) rate_per_s: Option<f64>,
    pub(crate) client_late: Option<Summary>,
    pub(crate) offered: u64,
    pub(crate) answers: u64,
    /// With 429.
    pub(crate) refused: u64,
    /// In any other way; and the first one's words.
    pub(crate) failed: u64,
    pub(crate) error: Option<String>,
    pub(crate) tokens: u64,
    /// From the first question to the last answer's end.
    pub(crate) seconds: f64,
    pub(crate) answers_per_s: f64,
    pub(crate) tokens_per_s: f64,
    /// Answers within the objective: all, where none was named.
    pub(crate) goodput_per_s: f64,
    /// To the first chunk with text.
    pub(crate) first_token: Summary,
    /// From one token to the next: each answer's mean.
    pub(crate) each_token: Summary,
    /// To an answer's end.
    pub(crate) answer: Summary,
    pub(crate) histograms: Histograms,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Histograms {
    pub(crate) first_token: Vec<Bar>,
    pub(crate) each_token: Vec<Bar>,
    pub(crate) answer: Vec<Bar>,
}

/// Where nobody says otherwise.
const TIME: Duration = Duration::from_secs(10);

fn rate(text: &str) -> Result<f64, String> {
    let rate = text.parse::<f64>().ok().filter(|rate| *rate > 0.0 && *rate <= 1e6);
    rate.ok_or_else(|| "expected how many come in a second, like 50 or 0.5".to_owned())
}

pub(crate) async fn run(args: Args) -> Result<(), Failure> {
    if let Some(plot) = &args.plot
        && !matches!(plot.extension().and_then(|end| end.to_str()), Some("svg" | "html"))
    {
        return Err(Failure::told(Code::Usage, format!("{} is neither an .svg nor an .html", plot.display())));
    }
    let target = Arc::new(Target::find(&args.url, args.key.clone()).await?);
    let model = match &args.model {
        Some(model) => model.clone(),
        None => first_model(&target).await?,
    };
    let pace = match args.rate {
        Some(per_s) => Pace::Open { per_s, time: args.time.unwrap_or(TIME) },
        None => Pace::Closed { clients: args.concurrency, rounds: args.rounds, time: args.time },
    };
    let (prompt, new_tokens, endpoint) = (args.prompt, args.new_tokens, args.endpoint);
    let plan = Plan { pace, prompt, new_tokens, endpoint, objective: args.objective };
    let report = measure(&target, &model, &plan).await?;
    let figures = draw(&report, &plan.objective);
    if let Some(path) = args.plot {
        let drawn = match path.extension() {
            Some(end) if end == "html" => picture::html(&report, &figures),
            _ => picture::svg(&report),
        };
        fs::write(&path, drawn).with_context(|| format!("failed to write {}", path.display()))?;
    }
    match args.output {
        Format::Json => output::print_json(&report),
        Format::Table => output::print(&(figures + &picture::lines(&report))),
    }
}

/// The first model that the API lists.
pub(crate) async fn first_model(target: &Arc<Target>) -> Result<String, Failure> {
    let ask = async {
        let listed = Connection::open(target).await?.get("/models").await?;
        let listed: serde_json::Value = serde_json::from_slice(&listed).context("the list of models is no JSON")?;
        let name = listed["data"][0]["id"].as_str().context("the API lists no model")?;
        anyhow::Ok(name.to_owned())
    };
    ask.await.map_err(|error| {
        Failure::new(Code::Unavailable, error).hint("start a tree with `banyan up`, or name another server with `--url`")
    })
}

/// Lets the clients ask, after one question that is not counted.
pub(crate) async fn measure(target: &Arc<Target>, model: &str, plan: &Plan) -> anyhow::Result<Report> {
    let crowd = Crowd::new(Arc::clone(target), model, plan);
    crowd.warm_up().await.context("the first question failed")?;
    let (found, took) = crowd.run().await;
    if found.answers == 0 {
        anyhow::bail!("nothing was answered: {}", found.error.as_deref().unwrap_or("all were refused"));
    }
    let per_s = |count: u64| count as f64 / took.as_secs_f64();
    let (concurrency, rate_per_s) = match plan.pace {
        Pace::Closed { clients, .. } => (clients, None),
        Pace::Open { per_s, .. } => (0, Some(per_s)),
    };
    Ok(Report {
        model: model.to_owned(),
        concurrency,
        rate_per_s,
        client_late: rate_per_s.map(|_| found.late.summary()),
        offered: found.offered,
        answers: found.answers,
        refused: found.refused,
        failed: found.failed,
        error: found.error,
        tokens: found.tokens,
        seconds: took.as_secs_f64(),
        answers_per_s: per_s(found.answers),
        tokens_per_s: per_s(found.tokens),
        goodput_per_s: per_s(found.good),
        first_token: found.first_token.summary(),
        each_token: found.each_token.summary(),
        answer: found.answer.summary(),
        histograms: Histograms {
            first_token: found.first_token.bars(BARS),
            each_token: found.each_token.bars(BARS),
            answer: found.answer.bars(BARS),
        },
    })
}

fn draw(report: &Report, objective: &Objective) -> String {
    let us = |us: f64| output::microseconds(us as u64);
    let mut rows = vec![["", "MEAN", "P50", "P90", "P99", "MAX"].map(str::to_owned).to_vec()];
    let mut row = |name: &str, summary: &Summary| {
        let figures = [summary.mean_us, summary.p50_us, summary.p90_us, summary.p99_us, summary.max_us];
        rows.push(std::iter::once(name.to_owned()).chain(figures.map(us)).collect());
    };
    row("first token", &report.first_token);
    row("each token", &report.each_token);
    row("whole answer", &report.answer);
    let asked = match report.rate_per_s {
        Some(rate) => format!("{rate} asked a second"),
        None => format!("{} at once", report.concurrency),
    };
    let mut text = format!(
        "{:.1} tokens/s and {:.1} answers/s over HTTP from {}: {} of {} tokens in all, {asked}\n",
        report.tokens_per_s,
        report.answers_per_s,
        report.model,
        output::count(report.answers as usize, "answer"),
        report.tokens,
    );
    if objective.is_any() {
        let share = 100.0 * report.goodput_per_s / report.answers_per_s;
        text += &format!("{:.1} answers/s within the objective, {share:.1} % of them\n", report.goodput_per_s);
    }
    if report.refused + report.failed > 0 {
        text += &format!("{} refused, {} failed", report.refused, report.failed);
        text += &report.error.as_ref().map_or("\n".to_owned(), |error| format!("; the first: {error}\n"));
    }
    if let Some(late) = &report.client_late {
        text += &format!("the clients themselves came late by {} (p99)\n", us(late.p99_us));
    }
    format!("{text}\n{}", output::table(&rows))
}

#[cfg(test)]
impl Default for Plan {
    fn default() -> Self {
        let pace = Pace::Closed { clients: 1, rounds: 1, time: None };
        Plan { pace, prompt: 32, new_tokens: 1, endpoint: Endpoint::Chat, objective: Objective::default() }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn an_answer_is_good_within_all_that_was_named() {
        let ms = Duration::from_millis;
        let objective = Objective { first_token_within: Some(ms(100)), each_token_within: Some(ms(10)), answer_within: None };
        assert!(objective.is_met(ms(100), Some(ms(10)), ms(5000)));
        assert!(objective.is_met(ms(100), None, ms(5000)), "one token has none before it");
        assert!(!objective.is_met(ms(101), Some(ms(10)), ms(5000)));
        assert!(!objective.is_met(ms(100), Some(ms(11)), ms(5000)));
        assert!(Objective::default().is_met(ms(9999), None, ms(9999)) && !Objective::default().is_any());
    }

    #[test]
    fn a_report_is_drawn_on_a_terminal_and_as_a_picture() {
        let mut histogram = crate::bench::histogram::Histogram::default();
        (1..=100).for_each(|ms| histogram.push(Duration::from_millis(ms)));
        let (summary, bars) = (histogram.summary(), histogram.bars(BARS));
        let report = Report {
            model: "a<b".to_owned(),
            concurrency: 0,
            rate_per_s: Some(5.0),
            client_late: Some(summary),
            offered: 103,
            answers: 100,
            refused: 2,
            failed: 1,
            error: Some("it broke".to_owned()),
            tokens: 800,
            seconds: 10.0,
            answers_per_s: 10.0,
            tokens_per_s: 80.0,
            goodput_per_s: 9.0,
            first_token: summary,
            each_token: summary,
            answer: summary,
            histograms: Histograms { first_token: bars.clone(), each_token: Vec::new(), answer: bars },
        };
        let objective = Objective { answer_within: Some(Duration::from_millis(90)), ..Objective::default() };
        let text = draw(&report, &objective) + &picture::lines(&report);
        for words in
            ["5 asked a second", "90.0 % of them", "2 refused, 1 failed; the first: it broke", "time to first token", "█"]
        {
            assert!(text.contains(words), "{words:?} in {text}");
        }
        let svg = picture::svg(&report);
        assert!(svg.contains("a&lt;b") && svg.contains("p99 ") && svg.ends_with("</svg>\n"), "{svg}");
        assert!(picture::html(&report, &text).starts_with("<!doctype html>"));
    }
}
