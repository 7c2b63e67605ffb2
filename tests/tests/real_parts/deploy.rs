//! deploy/'s files: read as their tools read them, and started, command for command, as processes, over three real etcd and PostgreSQL.

use banyan_tests::{postgres::Postgres, process::binary, real::python};

use super::passed;

#[tokio::test]
async fn every_file_is_what_its_tool_understands() {
    passed(&python("deploy_files.py", &[]).await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_very_commands_of_compose_and_kubernetes_make_clusters_that_answer_and_outlive_a_root() {
    let server = Postgres::start().await;
    let binary = binary().display().to_string();
    for kind in ["compose", "kubernetes"] {
        let ran = python("deploy_run.py", &[kind, &binary, &server.database().await]).await;
        passed(&ran);
        assert!(ran.out.contains("all ended well"), "{}", ran.out);
        assert_eq!(kind == "kubernetes", ran.out.contains("was drained"), "{}", ran.out);
    }
}
