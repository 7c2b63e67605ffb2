//! The whole command line as the user sees it: every command with examples, for `--help`, completions, man pages and docs/cli.md.

use clap::{Command, CommandFactory as _};

use crate::Cli;

/// Examples, by the command's path.
const EXAMPLES: &[(&str, &str)] = &[
    (
        "",
        "banyan up                                   a whole tree on this machine, with a chat page
banyan chat                                 talk to it
banyan node run my-node --parent root       add a node
banyan node tree --watch                    see what it does
banyan doctor                               when something is wrong",
    ),
    (
        "up",
        "banyan up
banyan up --nodes 4 --model gpt2 --dtype q8
banyan up --listen 0.0.0.0:8080 --open                let other machines ask
banyan up --etcd http://127.0.0.1:2379 --cluster mine  in an etcd that runs
banyan up --engine fake --nodes 8                     try trees without weights",
    ),
    (
        "node run",
        "banyan node run root                                    a root
banyan node run root-2 --standby                        waits to take its place
banyan node run a --parent root --model gpt2
banyan node run b --parent a --listen 0.0.0.0:7600 --advertise b.local:7600 --etcd http://etcd.local:2379
banyan node run outside --parent root --engine provider --providers providers.toml",
    ),
    (
        "node log",
        "banyan node log                     every node
banyan node log a --last 20         its last decisions
banyan node log a --follow -o json  as they come, one JSON object a line",
    ),
    (
        "node tree",
        "banyan node tree
banyan node tree --watch
banyan node tree -o json",
    ),
    (
        "node list",
        "banyan node list
banyan node list -o name",
    ),
    ("node move", "banyan node move b --parent root"),
    (
        "node drain",
        "banyan node drain b
banyan node drain b --deadline 5m   long answers may finish",
    ),
    (
        "why",
        "banyan why chatcmpl-019a3c5e
banyan why 019a3c5e -o json",
    ),
    (
        "api run",
        "banyan api run
banyan api run --etcd http://10.0.0.1:2379,http://10.0.0.2:2379 --listen 0.0.0.0:8080 --store postgres://banyan@db/banyan
banyan api run --host chat.example.com          behind a proxy on this machine",
    ),
    (
        "key create",
        "banyan key create --name alice
banyan key create --name batch --rpm 60 --tpm 100000 --models gpt2",
    ),
    (
        "key list",
        "banyan key list
banyan key list -o name",
    ),
    ("key revoke", "banyan key revoke alice"),
    (
        "key rotate",
        "banyan key rotate alice
banyan key rotate alice --grace 1h   the former secret stays good for an hour",
    ),
    (
        "usage",
        "banyan usage
banyan usage --from 2026-11-01 --to 2026-11-20 --key alice -o csv
banyan usage --requests 20           the last requests",
    ),
    (
        "registry serve",
        "banyan registry serve
banyan registry serve --listen 0.0.0.0:2379 --file registry.json   keys outlive the process",
    ),
    ("ca init", "banyan ca init --dir ca --cluster prod"),
    ("ca serve", "banyan ca serve --dir ca --listen 0.0.0.0:7599 --advertise ca.local:7599 --etcd https://etcd.local:2379"),
    ("ca join", "banyan ca join a --dir /var/lib/banyan/tls --token-file token"),
    ("ca revoke", "banyan ca revoke a --role node --dir ca"),
    ("ca issue", "banyan ca issue --dir ca --name api-1 --role api --out tls --host chat.example.com"),
    (
        "token create",
        "banyan token create --dir ca
banyan token create --dir ca --role root --name root",
    ),
    (
        "autoscale",
        "banyan autoscale --model gpt2 --max 4 --up 'systemctl start banyan-node@$BANYAN_NAME'
banyan autoscale --model gpt2 --min 2 --max 20 --prefix gpt2 --up 'kubectl scale statefulset/gpt2 --replicas=$BANYAN_WANTED' \
--down 'kubectl scale statefulset/gpt2 --replicas=$BANYAN_WANTED'
banyan autoscale --model gpt2 --max 4 --dry-run      say what would be done",
    ),
    (
        "chat",
        "banyan chat
banyan chat --model gpt2 --url http://10.0.0.1:8080
echo 'Tell me a story' | banyan chat --max-tokens 200 > story.txt",
    ),
    (
        "model pull",
        "banyan model pull gpt2
banyan model pull owner/name@v1.0
banyan model pull owner/name-GGUF/name.Q4_K_M.gguf",
    ),
    (
        "model import",
        "banyan model import ./my-gpt2                       then: banyan up --model local/my-gpt2
banyan model import ./story.gguf --name stories",
    ),
    (
        "model list",
        "banyan model list
banyan model list -o name",
    ),
    (
        "model verify",
        "banyan model verify              all of them
banyan model verify openai-community/gpt2",
    ),
    ("model rm", "banyan model rm local/my-gpt2"),
    (
        "bench engine",
        "banyan bench engine --model gpt2 --dtype f32,q8 --batch 1,8
banyan bench engine --random --http --plot engine.svg",
    ),
    ("bench limits", "banyan bench limits"),
    (
        "bench load",
        "banyan bench load --url http://127.0.0.1:8080 --concurrency 64
banyan bench load --url http://127.0.0.1:8080 --endpoint completions -o json",
    ),
    ("bench overload", "banyan bench overload"),
    (
        "config show",
        "banyan config show --origin
banyan config show --config banyan.toml -o json",
    ),
    ("bench quality", "banyan bench quality --model banyan-tiny --dtype q8,q4 --text story.txt"),
    (
        "bench route",
        "banyan bench route --depth 1 --depth 2
banyan bench route --compare classic -o json",
    ),
    (
        "doctor",
        "banyan doctor
banyan doctor --model gpt2 --etcd http://10.0.0.1:2379 -o json",
    ),
    (
        "completions",
        "banyan completions bash > ~/.local/share/bash-completion/completions/banyan
banyan completions zsh > ~/.zfunc/_banyan
banyan completions fish > ~/.config/fish/completions/banyan.fish",
    ),
    (
        "man",
        "banyan man | man -l -
banyan man --to ~/.local/share/man/man1     a page for each command",
    ),
];

/// The command line with its examples.
pub(crate) fn command() -> Command {
    EXAMPLES.iter().fold(Cli::command(), |command, (path, examples)| {
        let path: Vec<&str> = path.split_whitespace().collect();
        exemplified(command, &path, examples)
    })
}

fn exemplified(command: Command, path: &[&str], examples: &'static str) -> Command {
    match path {
        [] => {
            let indented: Vec<String> = examples.lines().map(|line| format!("  {line}")).collect();
            command.after_help(format!("Examples:\n{}", indented.join("\n")))
        }
        [first, rest @ ..] => command.mut_subcommand(first, |command| exemplified(command, rest, examples)),
    }
}

/// The examples of a command, as written.
pub(crate) fn examples(path: &str) -> Option<&'static str> {
    EXAMPLES.iter().find(|(of, _)| *of == path).map(|(_, examples)| *examples)
}

/// Every command that is shown, with its path: `node run`; first what contains, then what is contained.
pub(crate) fn every(command: &Command) -> Vec<(String, &Command)> {
    fn below<'a>(path: &str, command: &'a Command, found: &mut Vec<(String, &'a Command)>) {
        found.push((path.to_owned(), command));
        for inner in command.get_subcommands().filter(|inner| !inner.is_hide_set()) {
            below(format!("{path} {}", inner.get_name()).trim_start(), inner, found);
        }
    }
    let mut found = Vec::new();
    below("", command, &mut found);
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_command_has_examples_and_each_is_understood() {
        for (path, described) in every(&command()) {
            if described.has_subcommands() && !path.is_empty() {
                continue;
            }
            let examples = examples(&path).unwrap_or_else(|| panic!("`banyan {path}` has no examples: add some to EXAMPLES"));
            assert!(examples.lines().any(|line| line.contains(&format!("banyan {path}"))), "{path}: {examples}");
            for line in examples.lines() {
                let line = &line[line.find("banyan ").expect("an example of banyan")..];
                // What stands apart is said to the reader; what follows a pipe or an arrow is the shell's.
                let line = line.split(['|', '>']).next().and_then(|line| line.split("   ").next()).unwrap_or_default();
                let line = line.split("  ").next().unwrap_or_default();
                if let Err(error) = command().try_get_matches_from(words(line)) {
                    panic!("{line}: {error}");
                }
            }
        }
    }

    /// As a shell splits them, as far as examples go.
    fn words(line: &str) -> Vec<String> {
        let quoted = |(at, part): (usize, &str)| match at % 2 {
            0 => part.split_whitespace().map(str::to_owned).collect(),
            _ => vec![part.to_owned()],
        };
        line.split('\'').enumerate().flat_map(quoted).collect()
    }

    #[test]
    fn help_of_every_command_shows_its_examples() {
        for (path, _) in every(&command()) {
            let Some(examples) = examples(&path) else { continue };
            let line = ["banyan"].into_iter().chain(path.split_whitespace()).chain(["--help"]);
            let help = command().try_get_matches_from(line).expect_err("help ends the command").to_string();
            // Long lines are wrapped.
            let words = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ");
            assert!(words(&help).contains(&format!("Examples: {}", words(examples))), "{path}: {help}");
        }
    }
}
