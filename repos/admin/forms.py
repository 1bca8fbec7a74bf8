"""Forms whose rules are those of the models and of the doors, said beside the field that breaks them."""

from typing import TYPE_CHECKING, Any

from django import forms
from django.core.exceptions import ValidationError
from django.forms.fields import InvalidJSONInput

from repos import registration
from repos.clusters import check_credential
from repos.drivers import validate_driver_settings
from repos.models import Cluster, ClusterGroup, Credential, GitRepo

# Generic for the type checker alone.
if TYPE_CHECKING:
    _Form = forms.ModelForm[Any]
else:
    _Form = forms.ModelForm

SECRET = "new_secret"  # noqa: S105 (a field's name)


class WriteOnlyTextarea(forms.Textarea):
    """A password field that keeps line ends, which private keys have. What is stored or was typed is never sent back."""

    def __init__(self) -> None:
        super().__init__(
            attrs={
                "rows": 4,
                "cols": 80,
                "autocomplete": "off",
                "autocapitalize": "off",
                "spellcheck": "false",
                "style": "-webkit-text-security: disc",
            }
        )

    def format_value(self, value: Any) -> None:  # noqa: ARG002
        return None


class JsonField(forms.JSONField):
    """JSON as somebody typed it: what Python cannot follow is an error at the field, as what is no JSON."""

    def to_python(self, value: Any) -> Any:
        try:
            return super().to_python(value)
        except (ValueError, RecursionError):
            raise ValidationError(self.error_messages["invalid"], code="invalid", params={"value": value}) from None

    def bound_data(self, data: Any, initial: Any) -> Any:
        try:
            return super().bound_data(data, initial)
        except (ValueError, RecursionError):
            return InvalidJSONInput(data)


class SpecForm(_Form):
    """Knows which fields the user has touched since the page was opened: another's edit of the rest holds.

    For that the page carries every field's value as it was, hidden; a request without them is taken at its word.
    """

    # JSON fields, with what an empty one means. Django passes by an empty list or object where the other is meant.
    empty: dict[str, type] = {}

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        for name, field in self.fields.items():
            field.show_hidden_initial = name != SECRET and (
                not self.is_bound or self.add_initial_prefix(name) in self.data
            )

    def clean(self) -> dict[str, Any]:
        cleaned = super().clean() or self.cleaned_data
        for name, kind in self.empty.items():
            if name not in self.fields or name in self.errors:
                continue
            if cleaned.get(name) is None:
                cleaned[name] = kind()
            elif not isinstance(cleaned[name], kind):
                self.add_error(name, "This is a list." if kind is list else "This is an object.")
        if self.instance.pk is not None:
            for name in set(cleaned) - set(self.changed_data) - {SECRET}:
                cleaned[name] = getattr(self.instance, name)
        return cleaned

    def refuse(self, error: ValidationError) -> None:
        """Show a door's refusal, at its field if the form has that."""
        if not hasattr(error, "error_dict"):
            self.add_error(None, error)
            return
        for name, inner in error.error_dict.items():
            for each in inner:
                self.add_error(name if name in self.fields else None, each)


class GitRepoForm(SpecForm):
    empty = {"paths": list, "targets": list}

    class Meta:
        model = GitRepo
        fields = [
            "name",
            "url",
            "branch",
            "tag",
            "semver",
            "commit",
            "paths",
            "polling_interval",
            "disable_polling",
            "paused",
            "credential",
            "ca_bundle",
            "insecure_skip_tls_verify",
            "targets",
            "correct_drift",
            "keep_resources",
        ]
        field_classes = {"paths": JsonField, "targets": JsonField}
        widgets = {
            "url": forms.TextInput(attrs={"size": 80}),
            "paths": forms.Textarea(attrs={"rows": 3, "cols": 80}),
            "targets": forms.Textarea(attrs={"rows": 5, "cols": 80}),
        }
        help_texts = {
            "paths": 'A list, as in ["deploy", "apps/*"]. Empty: the whole repository.',
            "targets": 'A list, as in [{"cluster": "prod-eu"}, {"cluster_selector": {"matchLabels": {"env": "prod"}}}, '
            '{"cluster_group": "eu"}].',
            "branch": "At most one of branch, tag, semver and commit; none follows the remote's HEAD.",
        }

    def clean_name(self) -> str:
        name: str = self.cleaned_data["name"]
        if self.instance.pk is None and GitRepo.objects.alive().filter(name=name).exists():
            raise ValidationError("A GitRepo with this name exists already.")
        return name

    def _post_clean(self) -> None:
        super()._post_clean()  # type: ignore[misc]
        if self.errors:
            return
        before = GitRepo.objects.filter(pk=self.instance.pk).first() if self.instance.pk else None
        try:
            registration.check_spec(self.instance, before)
        except ValidationError as error:
            self.refuse(error)


class ClusterForm(SpecForm):
    empty = {"labels": dict, "settings": dict}

    class Meta:
        model = Cluster
        fields = ["name", "labels", "driver", "settings"]
        field_classes = {"labels": JsonField, "settings": JsonField}
        widgets = {
            "labels": forms.Textarea(attrs={"rows": 3, "cols": 80}),
            "settings": forms.Textarea(attrs={"rows": 4, "cols": 80}),
        }
        help_texts = {
            "labels": 'An object of texts, as in {"env": "prod"}.',
            "settings": 'The driver\'s, as in {"path": "/srv/clusters/prod-eu", "keep_releases": 3}.',
        }

    def _post_clean(self) -> None:
        super()._post_clean()  # type: ignore[misc]
        if self.errors:
            return
        try:
            validate_driver_settings(self.cleaned_data["driver"], self.cleaned_data["settings"])
        except ValidationError as error:
            self.add_error("settings", error)


class ClusterGroupForm(SpecForm):
    empty = {"selector": dict}

    class Meta:
        model = ClusterGroup
        fields = ["name", "selector"]
        field_classes = {"selector": JsonField}
        widgets = {"selector": forms.Textarea(attrs={"rows": 4, "cols": 80})}
        help_texts = {"selector": 'As in {"matchLabels": {"env": "prod"}}; {} selects every cluster.'}

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if "selector" in self.fields:
            self.fields["selector"].required = False


class CredentialForm(SpecForm):
    new_secret = forms.CharField(
        label="Secret",
        required=False,
        strip=False,
        max_length=65536,
        widget=WriteOnlyTextarea,
        help_text="The password, the token or the private key. Left empty, the stored one stays. It is never shown.",
    )

    class Meta:
        model = Credential
        fields = ["name", "kind", "username", "known_hosts"]

    def _post_clean(self) -> None:
        super()._post_clean()  # type: ignore[misc]
        if self.errors:
            return
        secret = self.cleaned_data[SECRET]
        try:
            check_credential(self.instance, {"secret": secret} if secret else {})
        except ValidationError as error:
            for name, messages in error.message_dict.items():
                self.add_error(SECRET if name == "secret" else name, messages)
