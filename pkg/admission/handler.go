// SPDX-License-Identifier: Apache-2.0

package admission

import (
	"context"
	"fmt"
	"strings"
	"time"

	gardencorev1beta1 "github.com/gardener/gardener/pkg/apis/core/v1beta1"
	admissionv1 "k8s.io/api/admission/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/validation/field"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/log"
	"sigs.k8s.io/controller-runtime/pkg/webhook/admission"

	"github.com/registry-cache/extension/pkg/apis/registry"
)

const (
	// answerWithin leaves the garden time to read the answer, which says more than that there was none.
	answerWithin = (timeoutSeconds - 2) * time.Second
	// maxErrors and maxMessage, in bytes, bound the answer: in a Shoot of the largest size there is room for tens of
	// thousands of caches with a mistake each, and for names of any length.
	maxErrors  = 20
	maxMessage = 2000
)

// handler is an admission.Handler of its own in place of the library's, which puts the whole Shoot into the log and into
// the answer if it cannot decode it, and answers all errors as if they were the fault of the Shoot's owner.
//
// The size of a request is bounded by controller-runtime, to 7 MiB.
type handler struct {
	decoder admission.Decoder
	// secrets reads from the garden.
	secrets client.Reader
	// within is how long it may take to answer.
	within time.Duration
}

// Handle refuses a Shoot with 422 and one cause for each mistake, and with 500 if it could not be checked.
func (h *handler) Handle(ctx context.Context, request admission.Request) admission.Response {
	if request.Operation != admissionv1.Create && request.Operation != admissionv1.Update {
		return admission.Allowed("")
	}
	ctx, cancel := context.WithTimeout(ctx, h.within)
	defer cancel()

	shoot := &gardencorev1beta1.Shoot{}
	if err := h.decoder.DecodeRaw(request.Object, shoot); err != nil {
		return undecodable("object", err)
	}
	var old *gardencorev1beta1.Shoot
	if request.Operation == admissionv1.Update {
		old = &gardencorev1beta1.Shoot{}
		if err := h.decoder.DecodeRaw(request.OldObject, old); err != nil {
			return undecodable("oldObject", err)
		}
		// Annotations and finalizers are how Gardener itself works with a Shoot. They must not depend on Secrets, nor on
		// rules that this version has and the one that admitted the Shoot had not.
		if equality.Semantic.DeepEqual(shoot.Spec, old.Spec) {
			return admission.Allowed("")
		}
	}

	errs := registry.ValidateShoot(shoot, old, secretsOf(ctx, h.secrets, request.Namespace))
	if len(errs) == 0 {
		return admission.Allowed("")
	}
	answer := refusal(request.Name, errs)
	log.FromContext(ctx).Info("Refused a Shoot", "shoot", client.ObjectKey{Namespace: request.Namespace, Name: request.Name}, "code", answer.Code, "reason", answer.Message)
	return refused(answer)
}

func undecodable(what string, err error) admission.Response {
	return refused(&apierrors.NewBadRequest(fmt.Sprintf("decoding %s of the request: %s", what, shorten(err.Error()))).ErrStatus)
}

func refused(status *metav1.Status) admission.Response {
	return admission.Response{AdmissionResponse: admissionv1.AdmissionResponse{Result: status}}
}

// refusal is the answer about the Shoot of that name if there are errs. It is a failure of the server only if there is
// nothing that the Shoot's owner has to change.
func refusal(name string, errs field.ErrorList) *metav1.Status {
	var mistakes, failures field.ErrorList
	for _, err := range errs {
		err.Detail = shorten(err.Detail)
		if err.Type == field.ErrorTypeInternal {
			failures = append(failures, err)
		} else {
			mistakes = append(mistakes, err)
		}
	}
	if len(mistakes) == 0 {
		return &apierrors.NewInternalError(limit(failures).ToAggregate()).ErrStatus
	}
	return &apierrors.NewInvalid(gardencorev1beta1.Kind("Shoot"), name, limit(append(mistakes, failures...))).ErrStatus
}

func limit(errs field.ErrorList) field.ErrorList {
	if len(errs) <= maxErrors {
		return errs
	}
	more := field.Invalid(field.NewPath("spec"), field.OmitValueType{}, fmt.Sprintf("%d more errors are not shown", len(errs)-maxErrors))
	return append(errs[:maxErrors:maxErrors], more)
}

func shorten(s string) string {
	if len(s) <= maxMessage {
		return s
	}
	return strings.ToValidUTF8(s[:maxMessage], "") + "…"
}
