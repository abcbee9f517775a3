//! Prints what is in a checkpoint of any format: `cargo run -p zoo-checkpoint --example open FILE`.

fn main() -> zoo_checkpoint::Result<()> {
    for path in std::env::args().skip(1) {
        let source = zoo_checkpoint::open(path.as_ref())?;
        for t in &source.tensors {
            println!("{} {} {:?}", t.name, t.dtype, t.shape);
        }
    }
    Ok(())
}
