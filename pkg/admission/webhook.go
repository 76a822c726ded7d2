// SPDX-License-Identifier: Apache-2.0

// Package admission keeps Shoots out of the garden whose registry caches could not be deployed, or would lose what they
// hold.
package admission

import (
	"fmt"

	extensionswebhook "github.com/gardener/gardener/extensions/pkg/webhook"
	gardencorev1beta1 "github.com/gardener/gardener/pkg/apis/core/v1beta1"
	v1beta1constants "github.com/gardener/gardener/pkg/apis/core/v1beta1/constants"
	admissionregistrationv1 "k8s.io/api/admissionregistration/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client/apiutil"
	"sigs.k8s.io/controller-runtime/pkg/manager"
	"sigs.k8s.io/controller-runtime/pkg/webhook/admission"

	"github.com/registry-cache/extension/pkg/apis/registry"
)

const (
	webhookName = "shoots"
	webhookPath = "/webhooks/shoots"
	// timeoutSeconds is how long the garden waits for the webhook.
	timeoutSeconds = 10
)

// NewWebhook returns the validating webhook on the Shoots that have the extension. The cluster of mgr is the garden, its
// scheme must know core.gardener.cloud/v1beta1 and Secrets, and it must let mgr get the Secrets of all projects.
//
// The webhook fails closed. What it refuses cannot be taken back later: a Shoot with a smaller volume or another
// StorageClass would be stored as if it was in force, while the volumes stay as they are, and credentials that are none
// would reach the caches. The price is small: gardener-apiserver marks the Shoots that have the extension with the label
// of the selector, so while the webhook is away no other Shoot is held up.
func NewWebhook(mgr manager.Manager) (*extensionswebhook.Webhook, error) {
	if _, err := apiutil.GVKForObject(&gardencorev1beta1.Shoot{}, mgr.GetScheme()); err != nil {
		return nil, fmt.Errorf("creating webhook %s: %w", webhookName, err)
	}
	return &extensionswebhook.Webhook{
		Action: extensionswebhook.ActionValidating,
		Name:   webhookName,
		Path:   webhookPath,
		// For the library it is the cluster of the manager.
		Target:         extensionswebhook.TargetSeed,
		Types:          []extensionswebhook.Type{{Obj: &gardencorev1beta1.Shoot{}}},
		ObjectSelector: &metav1.LabelSelector{MatchLabels: map[string]string{v1beta1constants.LabelExtensionExtensionTypePrefix + registry.ExtensionType: "true"}},
		FailurePolicy:  new(admissionregistrationv1.Fail),
		TimeoutSeconds: new(int32(timeoutSeconds)),
		Webhook: &admission.Webhook{
			// Secrets are not read from a cache: it would hold all of the garden's, and be some milliseconds behind a
			// user who makes a Secret and changes the Shoot at once.
			Handler:      &handler{decoder: admission.NewDecoder(mgr.GetScheme()), secrets: mgr.GetAPIReader(), within: answerWithin},
			RecoverPanic: new(true),
		},
	}, nil
}
