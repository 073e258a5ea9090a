"""Print the equal error rates that mean MFCC vectors reach on a trial list.

    python tools/mfcc_baseline.py CSV TRIALS

A trained system has to be clearly better than the z-normalised one.
"""


from lobes.errors import ArgumentParser, user_errors_exit
from lobes.evaluation.mfcc_baseline import mfcc_baseline


@user_errors_exit
def main(arguments=None):
    """Run the command with ``arguments`` (default: the process's own)."""
    parser = ArgumentParser(
        description=(
            "Equal error rates of cosine scoring on mean MFCC vectors: what "
            "verification costs on a trial list without any model."
        )
    )
    parser.add_argument("csv", help="table with the columns ID, wav[, start, stop]")
    parser.add_argument("trials", help="list with lines of `label enrol_ID test_ID`")
    options = parser.parse_args(arguments)
    result = mfcc_baseline(options.csv, options.trials, progress=True)
    print(f"EER of mean MFCCs, raw           {result['eer_raw']:6.2f} %")
    print(f"EER of mean MFCCs, z-normalised  {result['eer_znorm']:6.2f} %")
    print("(z-normalised with the mean and deviation of the evaluated utterances)")


if __name__ == "__main__":
    main()
