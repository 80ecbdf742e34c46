"""Public names keep the signatures that notebooks and scripts call them by."""

import pytest
from front_door import check_signature

import dmrifit

# Each is written as its definition: what stands here stays; more options by keyword may follow.
SIGNATURES = """
Protocol(b, te=None, *, directions=None, name="")
Protocol.read(bval, te=None, bvec=None)
Protocol.preset(name)
Protocol.clinical(self, n_b=5)
Protocol.take(self, indices)
Protocol.indices_in(self, other)
average_directions(signals, protocol, *, mean="geometric", tolerance=25)
Parameter(name, unit, low, high)
SignalModel.signal(self, parameters, protocol)
SignalModel.from_expression(expression, parameters, *, name)
SignalModel.from_function(function, parameters, *, name)
fit_voxels(signals, protocol, model, *, method=None, bounds=None, fixed=None, sigma=None, regularization=None, \
n_starts="auto", n_threads=None)
MapFitter(model="t2-ivim-kurtosis", protocol=None, *, bounds=None, fixed=None, sigma=None, n_threads=None)
MapFitter.transform(self, S, *, sigma=None)
MapFitter.inverse_transform(self, P)
ClinicalMetrics(protocol=None, *, method="nlls")
ClinicalMetrics.transform(self, S)
make_regressor(name, *, random_state=None, n_jobs=None, **params)
SignalToSignal(regressor="LR", *, source=None, target=None, model="t2-ivim-kurtosis", normalize=None, \
patch_shape=None, random_state=None)
MapsToMaps(regressor="LR", *, source=None, target=None, model="t2-ivim-kurtosis", loss="mean", target_scale="linear", \
patch_shape=None, random_state=None)
resolve_patch_shape(estimator)
ConformalIntervals(estimator, *, coverage=0.9)
ConformalIntervals.fit(self, X, Y, groups)
ConformalIntervals.predict_interval(self, X)
coverage_table(intervals, reference, groups)
resynthesize(signals, protocol, wanted, model, *, parameters=None, sigma=None, random_state=None)
SignalToSignal.predict_maps(self, X)
MapsToMaps.predict_maps(self, X)
Scan(patient, signal, protocol, mask, affine, *, lesion=None, cohort="", sigma=None)
Cohort(scans, name)
Cohort.read(table)
Cohort.write(self, folder)
Cohort.arrays(self, source=None, target=None, *, mask="lesion", scale="patient", patch_shape=None, max_voxels=None, \
random_state=None)
simulate_cohort(protocol="cohort1", n_patients=16, *, difficulty="mixed", shape=(48, 48, 8), random_state=None)
compare(estimators, cohorts, *, train_on="same", train_mask="body", score_mask="lesion", n_train=None, n_repeats=1, \
max_voxels=None, out=None, n_jobs=None, random_state=None)
Evaluation.read(folder)
write_report(evaluation, folder)
bias_index(prediction, reference)
dispersion_index(prediction, reference)
fit_image(image, protocol, model, *, mask=None, sigma=None, out=None)
predict_image(estimator, image, *, mask=None, scale="patient", sigma=None, out=None)
write_dicom_seg(labels, affine, path, *, source, kind="lesion", names=None, separate=False, manual=False)
prepare_brain(image, *, prior=None, spacing=1.0, bias_field=True, brain_mask=True, register=True)
roi_table(maps, labels, *, status=None)
protocol_precision(protocol, model, parameters, sigma)
suggest_model(protocol)
rank_contrasts(protocol, model, parameters, sigma, *, start=None, criterion="A", n=None, prior=None)
lesion_table(reference, prediction, affine=None, *, connectivity=26, min_overlap=1)
lesion_scores(tables)
Training(epochs=None, batch_size=None, learning_rate=None, *, schedule=None, decay=None, validation_fraction=None, \
patience=None, mixed_precision=None, compile=None, checkpoint=None, verbose=None)
VolumeEstimator.fit(self, X, y=None, *, groups=None)
VolumeEstimator.predict(self, X)
VolumeEstimator.score(self, X, y)
save_model(estimator, path)
load_model(path)
"""

RESULT = ("parameters", "standard_errors", "cost", "status", "n_iter", "names", "starts_disagree")
MODEL = ("name", "parameters", "names", "units", "bounds", "needs_te")
SYMBOLS = {
    "adc": "S0 ADC",
    "kurtosis": "S0 D K",
    "ivim": "S0 f Dv Dt",
    "t2-ivim-kurtosis": "S0 f Dv T2v Dt K T2t",
}


@pytest.mark.parametrize("line", SIGNATURES.split("\n")[1:-1])
def test_signatures_are_kept(line):
    check_signature(dmrifit, line)


def test_models_and_results_have_their_symbols_and_fields():
    symbols = {name: " ".join(model.names) for name, model in dmrifit.MODELS.items()}
    assert symbols.items() >= SYMBOLS.items()
    model = dmrifit.MODELS["adc"]
    assert all(hasattr(model, name) for name in MODEL)
    protocol = dmrifit.Protocol([0, 500, 1000])
    result = dmrifit.fit_voxels(model.signal([[100.0, 1.0]], protocol), protocol, model)
    assert all(hasattr(result, name) for name in RESULT)
    assert result["ADC"].shape == (1,)
    assert dmrifit.ALGORITHMS == ("LR", "RFR", "ETR", "GBR", "slNN", "mlNN", "CNN")
