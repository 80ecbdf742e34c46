"""Names and parameters that scripts call losses, segmenters and tables by."""

import pytest
from front_door import check_signature

import metastasis

SIGNATURES = """
vss_loss(logits, target, alpha, *, reduction="paper")
jvss_loss(logits, target, alpha, *, reduction="paper")
sse_loss(logits, target, alpha, *, reduction="paper")
VSSLoss(alpha)
JVSSLoss(alpha)
SSELoss(alpha)
DeepMedicSegmenter(loss="jvss", alpha=0.995, prior="path", low_resolution=(3, 5), segment_size=37, *, \
network="deepmedic", widths=None, missing_prior="validity", sampling="lesion", low_resolution_input="average", \
residual=False, reduction="paper", optimizer="rmsprop", threshold=0.5, warm_start_from=None, device="auto", \
random_state=None)
DeepMedicSegmenter.fit(self, volumes, labels=None, *, priors=None, groups=None)
DeepMedicSegmenter.predict_proba(self, volumes, *, priors=None)
DeepMedicSegmenter.predict(self, volumes, *, priors=None)
segment_image(segmenter, image, *, prior=None, mask=None, out=None)
SensitivitySpecificityEnsemble(sensitive, specific)
lesion_table(reference, prediction, affine=None, *, connectivity=26, min_overlap=1)
lesion_scores(tables)
simulate_metastases(n_patients, *, prior=0.75, random_state=None)
read_case(image, *, prior=None, brain=None)
read_cases(table)
write_cases(cases, folder)
write_evaluation(cases, predictions, folder, *, threshold=0.5)
"""


@pytest.mark.deep
@pytest.mark.parametrize("line", SIGNATURES.strip().split("\n"))
def test_names_and_parameters_are_kept(line):
    pytest.importorskip("torch")
    check_signature(metastasis, line)
