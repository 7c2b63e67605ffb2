//! `banyan doctor`: looks at everything that a tree needs, and says what to do about what is wrong.
//!
//! It changes nothing, and takes nothing: ports are bound and let go at once, models are read and not fetched.

mod machine;
mod tree;

use serde::Serialize;

use crate::{
    args::RegistryArgs,
    exit::{Code, Failure},
    output::{self, Format},
};

#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    registry: RegistryArgs,
    /// The API to ask whether it is ready.
    #[arg(long, env = "BANYAN_URL", value_name = "URL", default_value = "http://127.0.0.1:8080")]
    url: String,
    /// The model that is to be served here; by default gpt2.
    #[arg(long, env = "BANYAN_MODEL", value_name = "MODEL")]
    model: Option<String>,
    /// How to print it.
    #[arg(short = 'o', long = "output", value_name = "FORMAT", value_enum, default_value = "table")]
    output: Format,
}

/// How one thing stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum State {
    Good,
    /// Works, and could be better; or may be meant so.
    Notice,
    /// A tree can't run so.
    Bad,
}

/// One thing that was looked at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
struct Finding {
    what: &'static str,
    state: State,
    found: String,
    /// What to do, where there is something to do.
    todo: Option<String>,
}

impl Finding {
    fn good(what: &'static str, found: impl Into<String>) -> Finding {
        Finding { what, state: State::Good, found: found.into(), todo: None }
    }

    fn notice(what: &'static str, found: impl Into<String>, todo: impl Into<String>) -> Finding {
        Finding { what, state: State::Notice, found: found.into(), todo: Some(todo.into()) }
    }

    fn bad(what: &'static str, found: impl Into<String>, todo: impl Into<String>) -> Finding {
        Finding { what, state: State::Bad, found: found.into(), todo: Some(todo.into()) }
    }
}

pub(crate) async fn run(args: Args) -> Result<(), Failure> {
    let mut findings = machine::look(args.model.as_deref()).await;
    findings.extend(tree::look(&args.registry, &args.url).await);
    match args.output {
        Format::Json => output::print_json(&findings)?,
        Format::Table => output::print(&draw(&findings))?,
    }
    match findings.iter().filter(|finding| finding.state == State::Bad).count() {
        0 => Ok(()),
        bad => Err(Failure::told(Code::Error, format!("{} wrong", output::count(bad, "thing")))
            .hint("what stands behind the arrows above")),
    }
}

fn draw(findings: &[Finding]) -> String {
    let mut text = String::new();
    for finding in findings {
        let mark = match finding.state {
            State::Good => "ok",
            State::Notice => "--",
            State::Bad => "!!",
        };
        text.push_str(&format!("{mark}  {:<9}  {}\n", finding.what, finding.found));
        if let Some(todo) = &finding.todo {
            text.push_str(&format!("               → {todo}\n"));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_wrong_says_what_to_do() {
        let findings = [Finding::good("cores", "8"), Finding::bad("registry", "refused", "`banyan registry serve` starts one")];
        assert_eq!(
            draw(&findings),
            "ok  cores      8\n!!  registry   refused\n               → `banyan registry serve` starts one\n"
        );
    }
}
