//! A row of logits by blocks: the greatest of each, so that whoever wants the greatest of all, or the greatest few, looks at some
//! hundreds of them and not at the whole vocabulary again.

use crate::kernels::PEAK_COLUMNS as BLOCK;

/// The greatest logit of each block.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Peaks(Vec<f32>);

impl Peaks {
    /// Of logits that are all finite; `None` where one is not.
    pub(crate) fn new(logits: &[f32]) -> Option<Peaks> {
        let mut broken = [0f32; 16];
        let peaks = logits.chunks(BLOCK).map(|block| {
            let mut most = [f32::MIN; 16];
            let chunks = block.chunks_exact(most.len());
            let rest = chunks.remainder();
            for chunk in chunks {
                for ((most, broken), &logit) in most.iter_mut().zip(&mut broken).zip(chunk) {
                    *most = if logit > *most { logit } else { *most };
                    // 0 for a number, else NaN from here on.
                    *broken += logit * 0.0;
                }
            }
            for &logit in rest {
                most[0] = if logit > most[0] { logit } else { most[0] };
                broken[0] += logit * 0.0;
            }
            greatest(&most)
        });
        let peaks = peaks.collect();
        (broken.iter().sum::<f32>() == 0.0).then_some(Peaks(peaks))
    }

    /// As the head has noted them; `None` where a logit is not finite.
    pub(crate) fn noted(peaks: &[f32]) -> Option<Peaks> {
        peaks.iter().all(|peak| !peak.is_nan()).then(|| Peaks(peaks.to_vec()))
    }

    /// The greatest logit; the least of all floats where there is none.
    pub(super) fn most(&self) -> f32 {
        greatest(&self.0)
    }

    /// The greatest logit's token; of equals the lowest.
    pub(super) fn token(&self, logits: &[f32]) -> u32 {
        let most = self.most();
        let block = self.0.iter().position(|&peak| peak == most).unwrap_or(0);
        let in_block = self.block(logits, block).iter().position(|&logit| logit == most).unwrap_or(0);
        (block * BLOCK + in_block) as u32
    }

    /// At least `count` logits are no less than this.
    pub(super) fn bound(&self, count: usize) -> f32 {
        if count == 0 || count > self.0.len() {
            return f32::NEG_INFINITY;
        }
        // As many blocks have a logit that great.
        let mut peaks = self.0.clone();
        *peaks.select_nth_unstable_by(count - 1, |a, b| b.total_cmp(a)).1
    }

    /// Each block's peak, first token and logits.
    pub(super) fn blocks<'a>(&'a self, logits: &'a [f32]) -> impl Iterator<Item = (f32, usize, &'a [f32])> {
        self.0.iter().enumerate().map(|(number, &peak)| (peak, number * BLOCK, self.block(logits, number)))
    }

    /// Some tokens' logits have changed.
    pub(super) fn update(&mut self, logits: &[f32], tokens: impl Iterator<Item = u32>) {
        let mut changed = vec![false; self.0.len()];
        for token in tokens {
            if let Some(changed) = changed.get_mut(token as usize / BLOCK) {
                *changed = true;
            }
        }
        for number in (0..changed.len()).filter(|&number| changed[number]) {
            self.0[number] = greatest(self.block(logits, number));
        }
    }

    fn block<'a>(&self, logits: &'a [f32], number: usize) -> &'a [f32] {
        &logits[(number * BLOCK).min(logits.len())..((number + 1) * BLOCK).min(logits.len())]
    }
}

fn greatest(logits: &[f32]) -> f32 {
    logits.iter().fold(f32::MIN, |most, &logit| if logit > most { logit } else { most })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_logit_that_is_no_number_is_found_wherever_it_is() {
        for length in [1, 15, 16, 17, 255, 256, 257, 300, 5000] {
            let mut logits = vec![1.5f32; length];
            assert!(Peaks::new(&logits).is_some());
            for at in [0, length / 2, length - 1] {
                for broken in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
                    let whole = std::mem::replace(&mut logits[at], broken);
                    assert_eq!(Peaks::new(&logits), None, "{broken} at {at} of {length}");
                    logits[at] = whole;
                }
            }
        }
        assert!(Peaks::new(&[f32::MAX, f32::MIN, -0.0, f32::from_bits(1)]).is_some());
    }

    #[test]
    fn changed_logits_change_their_blocks() {
        let mut logits: Vec<f32> = (0..1000).map(|i: u32| (i.wrapping_mul(2_654_435_761) >> 20) as f32).collect();
        let mut peaks = Peaks::new(&logits).unwrap();
        for (token, logit) in [(0, 1e6), (999, 2e6), (0, 0.0), (999, -1.0), (255, 5e6), (256, 5e6)] {
            logits[token as usize] = logit;
            peaks.update(&logits, [token, 100_000].into_iter());
            assert_eq!(Peaks::new(&logits).as_ref(), Some(&peaks));
        }
        assert_eq!(peaks.token(&logits), 255, "the lowest of equals");
    }
}
