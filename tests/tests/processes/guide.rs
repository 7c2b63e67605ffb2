//! Every command of docs/guide.md, in its order, as its reader types them.

use std::{fs, path::Path, process::Stdio};

use banyan_tests::{eventually, forest::free_port};
use tokio::process::Child;

use super::shell::{command, shell};

/// What a page has for its reader's terminal.
enum Step {
    /// A block of commands.
    Run(String),
    /// End everything that serves.
    CtrlC,
}

fn steps(page: &str) -> Vec<Step> {
    let mut steps = Vec::new();
    let mut block: Option<String> = None;
    for line in page.lines() {
        match (&mut block, line) {
            (None, "```sh") => block = Some(String::new()),
            (None, "<!-- Ctrl-C -->") => steps.push(Step::CtrlC),
            (Some(_), "```") => steps.extend(block.take().map(Step::Run)),
            (Some(block), line) => {
                block.push_str(line);
                block.push('\n');
            }
            (None, _) => {}
        }
    }
    steps
}

/// What a line that serves says when it does.
fn served(block: &str) -> Option<&'static str> {
    let serving =
        [("up", "Ctrl-C stops everything"), ("node run", "is ready"), ("api run", "is ready"), ("registry serve", "is ready")];
    let serving = serving.into_iter().find(|(verb, _)| block.starts_with(&format!("banyan {verb}")));
    serving.map(|(_, says)| says).or(block.starts_with("banyan autoscale").then_some(""))
}

struct Reader {
    home: tempfile::TempDir,
    registry: u16,
    api: u16,
    node: u16,
    terminals: Vec<(String, Child)>,
}

impl Reader {
    /// Other ports than those of the page, whose default ones others may have; and the model that is in the program.
    fn as_typed_here(&self, block: &str) -> String {
        let Reader { registry, api, node, .. } = self;
        block
            .replace("localhost:8080", &format!("127.0.0.1:{api}"))
            .replace("10.0.0.1:2379", &format!("127.0.0.1:{registry}"))
            .replace("0.0.0.0:7600", &format!("127.0.0.1:{node}"))
            .replace("10.0.0.2:7600", &format!("127.0.0.1:{node}"))
            .replace("gpt2", "banyan-tiny")
    }

    fn settings(&self, block: &str) -> String {
        let Reader { registry, api, .. } = self;
        let mut settings = format!("export BANYAN_REGISTRY_LISTEN=127.0.0.1:{registry} BANYAN_URL=http://127.0.0.1:{api} ");
        if block.starts_with("banyan up") || block.starts_with("banyan api") {
            settings.push_str(&format!("BANYAN_LISTEN=127.0.0.1:{api} "));
        }
        if !block.starts_with("banyan up") {
            settings.push_str(&format!("BANYAN_ETCD=http://127.0.0.1:{registry} "));
        }
        settings
    }

    async fn types(&mut self, block: &str) {
        let line = format!("{}\n{}", self.settings(block), self.as_typed_here(block));
        let Some(says) = served(block) else {
            let ran = shell(self.home.path(), &format!("set -euo pipefail\n{line}")).await;
            // The doctor finds what is wrong before there is a tree, and says so.
            let well = ran.code == 0 || (block == "banyan doctor\n" && self.terminals.is_empty() && ran.code == 1);
            assert!(well, "{block}\n{}{}", ran.out, ran.err);
            return;
        };
        let written = self.home.path().join(format!("terminal-{}", self.terminals.len()));
        let file = fs::File::create(&written).expect("there is room");
        let mut serving = command(self.home.path(), &line.replacen("\nbanyan", "\nexec banyan", 1));
        serving.stdin(Stdio::null()).stdout(file.try_clone().expect("a file")).stderr(file);
        self.terminals.push((block.to_owned(), serving.spawn().expect("it starts")));
        let read = async || fs::read_to_string(&written).unwrap_or_default();
        eventually(&format!("{block} says that it {says}"), || async { read().await.contains(says).then_some(()) }).await;
    }

    async fn ends_everything(&mut self) {
        // What was started last ends first, and what has ended by a drain is no surprise.
        while let Some((block, mut serving)) = self.terminals.pop() {
            if let Some(pid) = serving.id() {
                let _ = tokio::process::Command::new("kill").args(["-INT", &pid.to_string()]).status().await;
            }
            let ended = serving.wait().await.expect("one's own child");
            assert!(ended.success(), "{block} ended with {ended}");
        }
    }
}

#[tokio::test]
async fn every_command_of_the_guide_works_in_its_order() {
    let page = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/guide.md")).expect("the guide");
    let home = tempfile::tempdir().expect("a folder");
    let tiny = Path::new(env!("CARGO_MANIFEST_DIR")).join("../engine/banyan-tiny");
    std::os::unix::fs::symlink(tiny.canonicalize().expect("the bundled model"), home.path().join("my-model")).expect("a link");
    let mut reader = Reader { home, registry: free_port(), api: free_port(), node: free_port(), terminals: Vec::new() };
    let mut verbs = 0;
    for step in steps(&page) {
        match step {
            Step::Run(block) => {
                reader.types(&block).await;
                verbs += 1;
            }
            Step::CtrlC => reader.ends_everything().await,
        }
    }
    reader.ends_everything().await;
    assert!(verbs > 20, "the guide has {verbs} blocks of commands");
}
