//! Scratch.
use banyan_engine::*;
use std::sync::Arc;
fn main() {
    fake();
    let dtype: Dtype = std::env::args().nth(1).unwrap().parse().unwrap();
    let batches = std::env::args().nth(2).unwrap().split(',').map(|x| x.parse().unwrap()).collect();
    let t = std::time::Instant::now();
    let model = Arc::new(Model::random(dtype).unwrap());
    eprintln!("load {:?}", t.elapsed());
    let plan = bench::Plan { batches, ..Default::default() };
    println!("{}", serde_json::to_string_pretty(&bench::run(&model, &plan).unwrap()).unwrap());
}
#[allow(dead_code)]
pub fn fake() {
    for batch in [1u32, 8] {
        let (engine, mut steps) = Engine::fake(fake::Options { batch_max: batch, ..Default::default() });
        let t = std::time::Instant::now();
        let mut n = 0usize;
        for id in 0..64u64 { engine.submit(Request { id: SequenceId(id), prompt: Prompt::Text("a".into()), sampling: Default::default(), max_tokens: Some(2000), min_tokens: 0, stop: vec![], ignore_eos: true, resume: vec![], alone: false }); }
        let mut ended = 0;
        while ended < 64 { for o in steps.blocking_recv().unwrap().outputs { match o { Output::Tokens{..} => n += 1, o if o.is_last() => ended += 1, _ => {} } } }
        println!("fake batch {batch}: {:.0} tok/s", n as f64 / t.elapsed().as_secs_f64());
    }
}
