//! By what angles a position turns queries and keys (rotary position embedding), as transformers computes them in f32.
//!
//! Owns what config.json says of it and the table of cosines and sines; the turning itself is the kernels'.

use std::f64::consts::PI;
use std::sync::OnceLock;

use super::fields::Fields;
use crate::LoadError;

/// Positions of a part of the table: it is filled where sequences come to, so that a context of 131,072 positions that
/// nobody uses costs nothing.
const PART: usize = 256;

/// What config.json says.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Rope {
    pub(crate) theta: f64,
    pub(crate) scaling: Scaling,
}

/// How a context was made longer than that of the first training.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Scaling {
    /// It was not.
    None,
    /// All angles by the same factor (Chen et al., arXiv:2306.15595).
    Linear { factor: f64 },
    /// By wavelength, as Llama 3.1 does it.
    Llama3 { factor: f64, low_freq_factor: f64, high_freq_factor: f64, original: f64 },
    /// By wavelength, with hotter attention (Peng et al., arXiv:2309.00071).
    Yarn { factor: f64, attention_factor: f64, beta_fast: f64, beta_slow: f64, original: f64, truncate: bool },
}

impl Rope {
    /// Reads `rope_theta` and `rope_scaling`, or `rope_parameters`, which holds both in newer files.
    pub(super) fn read(fields: &Fields<'_>, context: usize) -> Result<Rope, LoadError> {
        let both = fields.object("rope_parameters")?;
        let scaling = match &both {
            Some(_) => both.clone(),
            None => fields.object("rope_scaling")?,
        };
        let theta = match both.as_ref().map(|both| both.number("rope_theta", None)) {
            Some(theta) => theta?,
            None => fields.number("rope_theta", Some(10_000.0))?,
        };
        if theta <= 1.0 {
            return Err(fields.invalid(format!("rope_theta must be greater than 1, not {theta}")));
        }
        Ok(Rope { theta, scaling: scaling.map_or(Ok(Scaling::None), |scaling| Scaling::read(&scaling, context))? })
    }

    /// Angle of a position for each pair of a head's dimensions by 1, and what to multiply cosines and sines with.
    fn frequencies(&self, dim: usize) -> (Vec<f32>, f32) {
        let power = |pair: usize| self.theta.powf(f64::from((2 * pair) as f32 / dim as f32)) as f32;
        let plain = (0..dim / 2).map(|pair| 1.0 / power(pair));
        match self.scaling {
            Scaling::None => (plain.collect(), 1.0),
            Scaling::Linear { factor } => (plain.map(|frequency| frequency / factor as f32).collect(), 1.0),
            Scaling::Llama3 { factor, low_freq_factor, high_freq_factor, original } => {
                let scaled = |frequency: f32| {
                    let wavelength = (2.0 * PI) as f32 / frequency;
                    if f64::from(wavelength) > original / low_freq_factor {
                        frequency / factor as f32
                    } else if f64::from(wavelength) < original / high_freq_factor {
                        frequency
                    } else {
                        let smooth =
                            (original as f32 / wavelength - low_freq_factor as f32) / (high_freq_factor - low_freq_factor) as f32;
                        (1.0 - smooth) * frequency / factor as f32 + smooth * frequency
                    }
                };
                (plain.map(scaled).collect(), 1.0)
            }
            Scaling::Yarn { factor, attention_factor, beta_fast, beta_slow, original, truncate } => {
                // The dimension whose angle makes so many turns within the original context.
                let turning = |turns: f64| dim as f64 * (original / (turns * 2.0 * PI)).ln() / (2.0 * self.theta.ln());
                let (mut low, mut high) = (turning(beta_fast), turning(beta_slow));
                if truncate {
                    (low, high) = (low.floor(), high.ceil());
                }
                (low, high) = (low.max(0.0), high.min(dim as f64 - 1.0));
                if low == high {
                    high += 0.001;
                }
                let scaled = |pair: usize| {
                    let keep = 1.0 - ((pair as f32 - low as f32) / (high - low) as f32).clamp(0.0, 1.0);
                    1.0 / (factor as f32 * power(pair)) * (1.0 - keep) + 1.0 / power(pair) * keep
                };
                ((0..dim / 2).map(scaled).collect(), attention_factor as f32)
            }
        }
    }
}

impl Scaling {
    fn read(fields: &Fields<'_>, context: usize) -> Result<Scaling, LoadError> {
        let kind = match fields.text("rope_type")? {
            Some(kind) => Some(kind),
            None => fields.text("type")?,
        };
        let factor = || {
            let factor = fields.number("factor", None)?;
            if factor < 1.0 { Err(fields.invalid(format!("factor must be at least 1, not {factor}"))) } else { Ok(factor) }
        };
        let original = || {
            let original = fields.number("original_max_position_embeddings", Some(context as f64))?;
            if original < 1.0 {
                Err(fields.invalid("original_max_position_embeddings must be at least 1".into()))
            } else {
                Ok(original)
            }
        };
        if fields.number("partial_rotary_factor", Some(1.0))? != 1.0 {
            return Err(fields.unsupported("partial_rotary_factor (heads that are turned in part)"));
        }
        match kind {
            None | Some("default") => Ok(Scaling::None),
            Some("linear") => Ok(Scaling::Linear { factor: factor()? }),
            // It changes angles beyond max_position_embeddings only, and no sequence goes there.
            Some("dynamic") => Ok(Scaling::None),
            Some("llama3") => {
                let (low_freq_factor, high_freq_factor) =
                    (fields.number("low_freq_factor", None)?, fields.number("high_freq_factor", None)?);
                if low_freq_factor <= 0.0 || high_freq_factor <= low_freq_factor {
                    let message = "low_freq_factor must be greater than 0, and high_freq_factor greater than that";
                    return Err(fields.invalid(message.into()));
                }
                Ok(Scaling::Llama3 { factor: factor()?, low_freq_factor, high_freq_factor, original: original()? })
            }
            Some("yarn") => {
                let original = original()?;
                let factor = if fields.has("factor") { factor()? } else { context as f64 / original };
                let heat = |scale: f64, by: f64| if scale <= 1.0 { 1.0 } else { 0.1 * by * scale.ln() + 1.0 };
                let (mscale, all) = (fields.number("mscale", Some(0.0))?, fields.number("mscale_all_dim", Some(0.0))?);
                let own = if mscale != 0.0 && all != 0.0 { heat(factor, mscale) / heat(factor, all) } else { heat(factor, 1.0) };
                let (beta_fast, beta_slow) = (fields.number("beta_fast", Some(32.0))?, fields.number("beta_slow", Some(1.0))?);
                if beta_slow <= 0.0 || beta_fast < beta_slow {
                    return Err(fields.invalid("beta_slow must be greater than 0, and beta_fast at least that".into()));
                }
                let attention_factor = fields.number("attention_factor", Some(own))?;
                let truncate = fields.flag("truncate", true)?;
                Ok(Scaling::Yarn { factor, attention_factor, beta_fast, beta_slow, original, truncate })
            }
            Some(other) => {
                let message = format!(
                    "a {other:?} scaling of positions, and this version has \"default\", \"linear\", \"dynamic\", \"llama3\" and \"yarn\""
                );
                Err(fields.unsupported(&message))
            }
        }
    }
}

/// Cosines and sines of every position, computed where they are first asked for.
pub(crate) struct Angles {
    frequencies: Vec<f32>,
    scale: f32,
    /// `[PART, cosines and sines, dim / 2]` each.
    parts: Vec<OnceLock<Box<[f32]>>>,
}

impl Angles {
    /// For heads of `dim`, which is even, and positions up to `context`.
    pub(crate) fn new(rope: &Rope, dim: usize, context: usize) -> Angles {
        let (frequencies, scale) = rope.frequencies(dim);
        Angles { frequencies, scale, parts: (0..context.div_ceil(PART)).map(|_| OnceLock::new()).collect() }
    }

    /// A position's cosines, then its sines: `[dim / 2]` each.
    pub(crate) fn at(&self, position: usize) -> &[f32] {
        let dim = 2 * self.frequencies.len();
        let part = self.parts[position / PART].get_or_init(|| {
            let first = position / PART * PART;
            (first..first + PART).flat_map(|position| self.row(position)).collect()
        });
        &part[position % PART * dim..][..dim]
    }

    fn row(&self, position: usize) -> impl Iterator<Item = f32> {
        // The angle is rounded to f32, as transformers has it; its cosine is as exact as f32 allows.
        let angle = move |frequency: &f32| f64::from(position as f32 * frequency);
        let cosines = self.frequencies.iter().map(move |frequency| angle(frequency).cos() as f32 * self.scale);
        cosines.chain(self.frequencies.iter().map(move |frequency| angle(frequency).sin() as f32 * self.scale))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn read(json: Value) -> Result<Rope, String> {
        Rope::read(&Fields::new(&json, "config.json", "llama"), 64).map_err(|error| error.to_string())
    }

    #[test]
    fn both_ways_of_writing_it_are_read() {
        let linear = Rope { theta: 500_000.0, scaling: Scaling::Linear { factor: 2.0 } };
        let old = json!({"rope_theta": 500_000.0, "rope_scaling": {"type": "linear", "factor": 2.0}});
        assert_eq!(read(old), Ok(linear.clone()));
        let new = json!({"rope_parameters": {"rope_theta": 5e5, "rope_type": "linear", "factor": 2.0}});
        assert_eq!(read(new), Ok(linear));
        let plain = Rope { theta: 10_000.0, scaling: Scaling::None };
        for json in [json!({}), json!({"rope_scaling": null}), json!({"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}})] {
            assert_eq!(read(json), Ok(plain.clone()));
        }
    }

    #[test]
    fn what_is_not_supported_or_makes_no_sense_is_refused_by_name() {
        for (json, word) in [
            (json!({"rope_scaling": {"rope_type": "longrope"}}), "longrope"),
            (json!({"rope_scaling": {"rope_type": "linear"}}), "factor"),
            (json!({"rope_scaling": {"rope_type": "linear", "factor": 0.0}}), "factor"),
            (json!({"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}), "low_freq_factor"),
            (json!({"rope_scaling": "linear"}), "rope_scaling"),
            (json!({"rope_theta": 0.5}), "rope_theta"),
            (json!({"rope_theta": "1e4"}), "rope_theta"),
            (json!({"rope_parameters": {"rope_type": "default"}}), "rope_theta"),
            (json!({"rope_parameters": {"rope_theta": 1e4, "partial_rotary_factor": 0.5}}), "partial_rotary_factor"),
        ] {
            let error = read(json).unwrap_err();
            assert!(error.contains(word), "{error:?} names {word}");
        }
    }

    #[test]
    fn a_position_has_the_same_angles_whoever_asks_first() {
        let rope = Rope { theta: 10_000.0, scaling: Scaling::None };
        let (a, b) = (Angles::new(&rope, 6, 1000), Angles::new(&rope, 6, 1000));
        for position in [999, 0, 256, 255, 511] {
            b.at(position);
        }
        for position in 0..1000 {
            assert_eq!(a.at(position), b.at(position));
            let angle = position as f64 / 10_000f64.powf(1.0 / 3.0);
            assert!((f64::from(a.at(position)[1]) - angle.cos()).abs() < 1e-4);
            assert!((f64::from(a.at(position)[4]) - angle.sin()).abs() < 1e-4);
        }
        assert_eq!(a.parts.len(), 4);
    }
}
