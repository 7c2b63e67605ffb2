//! Strings of every script, emoji and control characters, the same ones as golden/strings.py makes.

use crate::splitmix::SplitMix;

pub(crate) fn strings(seed: u64, count: usize) -> Vec<String> {
    let alphabets: Vec<(u32, u32)> = include_str!("../../golden/alphabets.txt")
        .lines()
        .map(|line| {
            let (range, _) = line.split_once(' ').expect("a range and a name");
            let (first, last) = range.split_once('-').expect("a range");
            (u32::from_str_radix(first, 16).expect("hexadecimal"), u32::from_str_radix(last, 16).expect("hexadecimal"))
        })
        .collect();
    let pieces: Vec<String> = serde_json::from_str(include_str!("../../golden/pieces.json")).expect("a list of strings");
    let mut rng = SplitMix(seed);
    (0..count).map(|_| string(&mut rng, &alphabets, &pieces)).collect()
}

fn string(rng: &mut SplitMix, alphabets: &[(u32, u32)], pieces: &[String]) -> String {
    let mut text = String::new();
    for _ in 0..rng.below(12) {
        match rng.below(5) {
            0 => text.push_str(&pieces[rng.below(pieces.len() as u64) as usize]),
            1 | 2 => {
                let (first, last) = alphabets[rng.below(alphabets.len() as u64) as usize];
                for _ in 0..1 + rng.below(8) {
                    let code = first + rng.below(u64::from(last - first + 1)) as u32;
                    text.push(char::from_u32(code).expect("the alphabets hold no surrogates"));
                }
            }
            3 => (0..1 + rng.below(10)).for_each(|_| text.push(char::from(97 + rng.below(26) as u8))),
            _ => text.push(' '),
        }
    }
    text
}
