//! `bench --ranks`: sums over the processes of a launch, in order and as MPI would add them.

use std::time::Instant;

use serde_json::json;
use zoo_layers::random::{Purpose, Stream};
use zoo_training::{Error, Ranks, Tree};

use super::bench::{Arguments, median};
use crate::output::{print, print_json, table};
use crate::ranks::Engine;
use crate::system::cpu_name;

/// Parameters of stock-lstm, char-gpt's cpu, deepsif's stable and deepsif's lstm.
const SIZES: [usize; 4] = [31_051, 804_096, 3_200_000, 22_000_000];
/// Leaves and values of the comparison of bits.
const LEAVES: u64 = 12;
const VALUES: usize = 100_000;

/// The gradient of a micro-batch, made up.
fn leaf(number: u64, n: usize) -> Vec<f32> {
    let mut stream = Stream::new(1, Purpose::Shuffle, 2, number);
    (0..n).map(|_| stream.uniform() as f32 - 0.5).collect()
}

fn add(mut a: Vec<f32>, b: Vec<f32>) -> Result<Vec<f32>, Error> {
    a.iter_mut().zip(b).for_each(|(a, b)| *a += b);
    Ok(a)
}

/// The shares of values in which sums over all processes differ from the one of a single process: in order, and by MPI.
fn differing(ranks: &Ranks, engine: &Engine) -> anyhow::Result<[f64; 2]> {
    let (mut whole, mut own, mut plain) = (Tree::new(LEAVES), Tree::new(LEAVES), vec![0.; VALUES]);
    let share = ranks.share(ranks.rank(), LEAVES);
    for number in 0..LEAVES {
        whole.push(number..number + 1, leaf(number, VALUES), add)?;
        if share.contains(&number) {
            own.push(number..number + 1, leaf(number, VALUES), add)?;
            plain = add(plain, leaf(number, VALUES))?;
        }
    }
    let expected = whole.into_nodes().concat();
    let in_order = ranks.sum(LEAVES, VALUES, own.into_nodes())?;
    engine.plain_sum(&mut plain)?;
    let differs = |found: &[f32]| {
        let other = found.iter().zip(&expected).filter(|(a, b)| a.to_bits() != b.to_bits()).count();
        other as f64 / VALUES as f64
    };
    Ok([differs(&in_order), differs(&plain)])
}

pub(crate) fn run(args: &Arguments, ranks: &Ranks, engine: &Engine) -> anyhow::Result<()> {
    let (size, leaves) = (ranks.size(), ranks.size() as u64);
    let mut found = vec![];
    for n in SIZES {
        let values = leaf(ranks.rank() as u64, n);
        let (mut in_order, mut plain) = (vec![], vec![]);
        let started = Instant::now();
        // In turn, so that what else the machine does falls on both.
        while ranks.any(started.elapsed().as_secs_f64() < args.seconds / 4. && in_order.len() < 500)? {
            let (own, mut same) = (values.clone(), values.clone());
            ranks.any(false)?;
            let begun = Instant::now();
            std::hint::black_box(ranks.sum(leaves, n, vec![own])?);
            in_order.push(1e3 * begun.elapsed().as_secs_f64());
            ranks.any(false)?;
            let begun = Instant::now();
            engine.plain_sum(&mut same)?;
            plain.push(1e3 * begun.elapsed().as_secs_f64());
        }
        found.push((n, median(in_order), median(plain)));
    }
    let [in_order, plain] = differing(ranks, engine)?;
    let mpi = engine.version();
    if args.json.json {
        let sums = found.iter().map(|(n, ours, mpi)| json!({ "values": n, "in_order_ms": ours, "mpi_ms": mpi }));
        print_json(&json!({
            "cpu": cpu_name(), "processes": size, "mpi": mpi, "sums": sums.collect::<Vec<_>>(), "leaves": LEAVES,
            "differing": { "in_order": in_order, "mpi": plain },
        }));
        return Ok(());
    }
    let mut rows = vec![["values", "in order ms", "MPI_Allreduce ms", "times"].map(String::from).to_vec()];
    for (n, ours, mpi) in found {
        rows.push(vec![n.to_string(), format!("{ours:.3}"), format!("{mpi:.3}"), format!("{:.2}", ours / mpi)]);
    }
    print(&format!(
        "{}\nof {LEAVES} leaves, values whose bits are not those of one process: {:.1} % in order, {:.1} % by MPI_Allreduce\n\
         {}, {size} processes, {mpi}\n",
        table(&rows),
        100. * in_order,
        100. * plain,
        cpu_name()
    ));
    Ok(())
}
