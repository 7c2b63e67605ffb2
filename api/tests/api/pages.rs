//! The pages as they are served.

use std::path::Path;

use crate::{client, rig::rig, root::hello};

#[tokio::test]
async fn the_chat_page_is_served_with_its_headers() {
    let rig = rig(hello()).await;
    let page = rig.get("/").await;
    assert_eq!(page.status, 200);
    assert_eq!(page.headers["content-type"], "text/html; charset=utf-8");
    assert_eq!(page.headers["x-content-type-options"], "nosniff");
    assert_eq!(page.headers["referrer-policy"], "no-referrer");
    let policy = &page.headers["content-security-policy"];
    for part in [
        "default-src 'none'",
        "script-src 'self'",
        "connect-src 'self'",
        "frame-ancestors 'none'",
        "require-trusted-types-for 'script'",
    ] {
        assert!(policy.contains(part), "{policy}");
    }
    assert!(page.text().starts_with("<!doctype html>"));
}

#[tokio::test]
async fn what_the_browser_has_is_not_sent_again() {
    let rig = rig(hello()).await;
    let tag = rig.get("/").await.headers["etag"].clone();
    for tags in [tag.clone(), format!("W/{tag}"), format!("\"other\", {tag}"), "*".to_owned()] {
        let again = client::ask(rig.api.address(), "GET", "/", &[("if-none-match", &tags)], b"").await;
        assert_eq!((again.status, again.body.len()), (304, 0), "{tags}");
        assert_eq!(again.headers["etag"], tag);
    }
    let changed = client::ask(rig.api.address(), "GET", "/", &[("if-none-match", "\"other\"")], b"").await;
    assert_eq!(changed.status, 200);
}

#[tokio::test]
async fn every_part_that_the_page_names_is_there_and_nothing_is_inline() {
    let rig = rig(hello()).await;
    let mut unseen = vec!["/".to_owned(), "/tree".to_owned()];
    let mut seen = std::collections::BTreeSet::new();
    while let Some(path) = unseen.pop() {
        if !seen.insert(path.clone()) {
            continue;
        }
        let part = rig.get(&path).await;
        assert_eq!(part.status, 200, "{path}");
        assert_ne!(part.headers["content-type"], "application/octet-stream", "{path}");
        if part.headers["content-type"] == "image/png" {
            continue;
        }
        let text = part.text();
        // Addresses are quoted and have no spaces; those of endpoints have no file's ending.
        for quoted in text.split(['"', '\'']).filter(|quoted| quoted.starts_with('/') && !quoted.contains(char::is_whitespace)) {
            let path = quoted.split('#').next().unwrap();
            if path.contains('.') && !path.contains('$') {
                unseen.push(path.to_owned());
            }
        }
        for never in
            ["innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", " style=\"", " onclick=", "https://"]
        {
            assert!(!text.contains(never), "{path} has {never}");
        }
    }
    let written = files(Path::new("../web"));
    assert!(
        written.iter().all(|path| ["/index.html", "/tree.html"].contains(&&**path) || seen.contains(path)),
        "nobody names one of {written:?}"
    );
    // What is opened without a line is kept by these names; the tree is nothing without one.
    let worker = rig.get("/sw.js").await;
    let kept = worker.text();
    for path in seen.iter().filter(|path| *path != "/sw.js" && !path.contains("/tree")) {
        assert!(kept.contains(&format!("'{path}'")), "the service worker does not keep {path}");
    }
}

#[tokio::test]
async fn what_a_reader_is_sent_of_the_page_is_60_kb_gzipped() {
    let rig = rig(hello()).await;
    let (mut bytes, mut of_tree) = (0, 0);
    for path in files(Path::new("../web")) {
        let part = client::ask(rig.api.address(), "GET", &path, &[("accept-encoding", "br, gzip;q=0.8")], b"").await;
        assert_eq!(part.status, 200, "{path}");
        assert_eq!(part.headers["vary"], "accept-encoding");
        // Who reads English is not sent other languages, nor the picture that only an installed page has.
        if !["es.js", "zh.js", "icon-192.png"].iter().any(|other| path.ends_with(other)) {
            *if path.contains("/tree") { &mut of_tree } else { &mut bytes } += part.body.len();
        }
        // Who takes no gzip, or says that it is nothing to him, gets what was written.
        let plain = client::ask(rig.api.address(), "GET", &path, &[("accept-encoding", "gzip;q=0")], b"").await;
        // Every line that is sent was written so, and in that order.
        let written = std::fs::read(format!("../web{path}")).unwrap();
        let mut lines = written.split(|byte| *byte == b'\n');
        assert!(plain.body.split(|byte| *byte == b'\n').all(|sent| lines.any(|line| line == sent)), "{path}");
        assert!(
            part.body.len() <= plain.body.len() && (part.headers["etag"] != plain.headers["etag"]) == (part.body != plain.body)
        );
    }
    assert!(bytes <= 60 * 1024, "{bytes} bytes");
    assert!(of_tree <= TREE_KIB_MAX * 1024, "{of_tree} bytes");
}

/// What the tree's page takes beside what it shares with the chat's.
const TREE_KIB_MAX: usize = 24;

/// The paths of what lies in a folder.
fn files(folder: &Path) -> Vec<String> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap().map(Result::unwrap) {
        let name = format!("/{}", entry.file_name().to_str().unwrap());
        if entry.path().is_dir() {
            found.extend(files(&entry.path()).into_iter().map(|path| name.clone() + &path));
        } else {
            found.push(name);
        }
    }
    found
}

#[tokio::test]
async fn nothing_outside_the_pages_is_served() {
    let rig = rig(hello()).await;
    for path in ["/../Cargo.toml", "/..%2fCargo.toml", "/index.html/", "//etc/passwd", "/nothing"] {
        assert_eq!(rig.get(path).await.status, 404, "{path}");
    }
}
