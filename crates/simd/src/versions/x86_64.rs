//! x86-64: AVX-512, AVX2, and SSE2, which every such machine has.

use std::sync::atomic::{AtomicU8, Ordering};

/// What the running machine has.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Level {
    Avx512,
    Avx2,
    Base,
}

/// Asks the machine once.
#[inline]
pub(crate) fn level() -> Level {
    static LEVEL: AtomicU8 = AtomicU8::new(0);
    match LEVEL.load(Ordering::Relaxed) {
        1 => Level::Avx512,
        2 => Level::Avx2,
        3 => Level::Base,
        _ => {
            let avx2 = is_x86_feature_detected!("avx2");
            let avx512 = avx2
                && is_x86_feature_detected!("avx512f")
                && is_x86_feature_detected!("avx512bw")
                && is_x86_feature_detected!("avx512dq")
                && is_x86_feature_detected!("avx512vl");
            let (code, level) = match (avx512, avx2) {
                (true, _) => (1, Level::Avx512),
                (false, true) => (2, Level::Avx2),
                (false, false) => (3, Level::Base),
            };
            LEVEL.store(code, Ordering::Relaxed);
            level
        }
    }
}

/// Makes a function of `body`, an `#[inline(always)]` function of the same signature, that runs it in the widest vectors.
macro_rules! versions {
    ($(#[$attribute:meta])* $vis:vis fn $name:ident($($arg:ident: $ty:ty),* $(,)?) $(-> $ret:ty)? = $body:path) => {
        $(#[$attribute])*
        #[allow(clippy::too_many_arguments)]
        $vis fn $name($($arg: $ty),*) $(-> $ret)? {
            #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2")]
            #[allow(clippy::too_many_arguments)]
            fn avx512($($arg: $ty),*) $(-> $ret)? {
                $body($($arg),*)
            }
            #[target_feature(enable = "avx2")]
            #[allow(clippy::too_many_arguments)]
            fn avx2($($arg: $ty),*) $(-> $ret)? {
                $body($($arg),*)
            }
            match $crate::versions::arch::level() {
                // SAFETY: `level` found all of these features on the running machine.
                $crate::versions::arch::Level::Avx512 => unsafe { avx512($($arg),*) },
                // SAFETY: `level` found this feature on the running machine.
                $crate::versions::arch::Level::Avx2 => unsafe { avx2($($arg),*) },
                $crate::versions::arch::Level::Base => $body($($arg),*),
            }
        }
    };
}
pub(crate) use versions;
