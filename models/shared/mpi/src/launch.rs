//! What a launcher says in the environment: `mpirun`, `mpiexec` or `srun`.

/// How this process was launched, together with others.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Launch {
    /// Its number among all processes, from 0, by its launcher.
    pub rank: usize,
    /// Processes that were launched.
    pub size: usize,
    /// Its number among those of this node, from 0.
    pub local_rank: usize,
    /// Processes of this node.
    pub local_size: usize,
}

/// The variables of a launcher: all processes, this one's number, those of this node, this one's number there.
const LAUNCHERS: [[&str; 4]; 3] = [
    ["OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_LOCAL_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK"],
    ["PMI_SIZE", "PMI_RANK", "MPI_LOCALNRANKS", "MPI_LOCALRANKID"],
    ["SLURM_STEP_NUM_TASKS", "SLURM_PROCID", "SLURM_NTASKS_PER_NODE", "SLURM_LOCALID"],
];

impl Launch {
    /// How this process was launched; `None` if it is alone, or if `ZOO_MPI=off` says that the others are not its concern.
    pub fn of_this_process() -> Option<Self> {
        Self::by(&|name| std::env::var(name).ok())
    }

    fn by(variable: &dyn Fn(&str) -> Option<String>) -> Option<Self> {
        if variable("ZOO_MPI").as_deref() == Some("off") {
            return None;
        }
        let number = |name: &str| variable(name)?.trim().parse::<usize>().ok();
        LAUNCHERS.iter().find_map(|[size, rank, local_size, local_rank]| {
            let (size, rank) = (number(size).filter(|n| *n > 1)?, number(rank)?);
            let local_size = number(local_size).unwrap_or(size).clamp(1, size);
            Some(Self { rank, size, local_size, local_rank: number(local_rank).unwrap_or(rank % local_size) })
        })
    }

    /// Threads for each process of this node, of `cores` that it has and `available` that this process may use.
    pub fn threads(&self, cores: usize, available: usize) -> usize {
        (cores / self.local_size).min(available).max(1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn launchers_are_told_by_their_variables() {
        let by = |set: &[(&str, &str)]| {
            Launch::by(&|name| set.iter().find(|(n, _)| *n == name).map(|(_, value)| value.to_string()))
        };
        let open_mpi = [
            ("OMPI_COMM_WORLD_SIZE", "4"),
            ("OMPI_COMM_WORLD_RANK", "3"),
            ("OMPI_COMM_WORLD_LOCAL_SIZE", "2"),
            ("OMPI_COMM_WORLD_LOCAL_RANK", "1"),
        ];
        assert_eq!(by(&open_mpi), Some(Launch { rank: 3, size: 4, local_rank: 1, local_size: 2 }));
        let off = [open_mpi.as_slice(), &[("ZOO_MPI", "off")]].concat();
        assert_eq!(by(&off), None);
        let slurm = [("SLURM_STEP_NUM_TASKS", "8"), ("SLURM_PROCID", "5"), ("SLURM_NTASKS_PER_NODE", "4")];
        assert_eq!(by(&slurm), Some(Launch { rank: 5, size: 8, local_rank: 1, local_size: 4 }));
        assert_eq!(by(&[("PMI_SIZE", "1"), ("PMI_RANK", "0")]), None, "one process is alone");
        assert_eq!(by(&[]), None);
    }

    #[test]
    fn processes_of_a_node_share_its_cores() {
        let launch = Launch { rank: 0, size: 8, local_rank: 0, local_size: 4 };
        assert_eq!([launch.threads(16, 16), launch.threads(2, 2), launch.threads(16, 1)], [4, 1, 1]);
    }
}
